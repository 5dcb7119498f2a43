"""Registers an op and its backward with ``torch.library`` so that every op does it alike.

An op is opaque to ``torch.compile`` and to autograd: a functional schema, a fake, an autograd formula that calls a
second opaque op, an autocast rule, and kernels for CPU and CUDA that pick the implementation when they run.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch

from .direct import KERNELS, unobserved
from .errors import DoubleBackwardError
from .namespace import NAMESPACE, ops
from .op_autograd import autograd_kernel
from .triton.tables import buffer

__all__ = ["LIBRARY", "autocast_inputs", "autograd_inside", "define", "forbid_double_backward"]

LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
# register_fake notes where it is called from, for which inspect resolves the path of every module that is loaded: as
# long as the rest of importing this package takes. In this table it looks first.
getattr(inspect, "modulesbyfile", {}).setdefault(os.path.normcase(os.path.abspath(__file__)), __name__)


def define(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    autocast: bool = True,
) -> Any:
    """Define ``hfadapt::name`` (the namespace of this copy) and return its default overload.

    Args:
        name: Op name.
        schema: Arguments and results, for example ``(Tensor x, Tensor[] a, Tensor? ids) -> Tensor``.
        kernel: Runs the op; called for CPU and CUDA tensors alike, and chooses the backend itself.
        fake: Shapes and dtypes of the results.
        setup_context: Saves for backward (see `autograd_kernel`).
        backward: Gradient formula (see `autograd_kernel`); without one the op refuses to be differentiated.
        autocast: Floating-point tensors are cast to the autocast dtype, as for ``torch.nn.functional.linear``.
    """
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"{NAMESPACE}::{name}"
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    op = getattr(ops, name).default
    KERNELS[op] = kernel
    gradient = autograd_kernel(op, kernel, setup_context, backward or forbid_double_backward(name))
    LIBRARY.impl(name, gradient, "Autograd", with_keyset=True)
    if autocast:
        for device in ("cpu", "cuda"):
            LIBRARY.impl(name, _autocast_kernel(op, device), f"Autocast{device.upper()}")
    return op


def autocast_inputs(device: str, *args: Any) -> tuple[Any, ...]:
    """``args`` with floating-point tensors cast to autocast's dtype when autocast is on for ``device``.

    Public functions call this before they choose a path, so that the reference and the opaque op agree. Sequences are
    cast together, by one launch; float64 tensors and tensors of other devices are left alone, as torch's own rule does.
    """
    if not torch.is_autocast_enabled(device):
        return args
    dtype = torch.get_autocast_dtype(device)
    return tuple(_cast(value, device, dtype) for value in args)


def _cast(value: Any, device: str, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if _cast_here(value, device) else value
    if isinstance(value, (list, tuple)):
        items = list(value)
        alike = len(items) > 1 and all(isinstance(t, torch.Tensor) and t.dtype != dtype for t in items)
        if alike and unobserved(items) and all(_cast_here(item, device) for item in items):
            return list(_CastTogether.apply(dtype, *items))
        return [_cast(item, device, dtype) for item in items]
    return value


def _cast_here(tensor: torch.Tensor, device: str) -> bool:
    return tensor.is_floating_point() and tensor.device.type == device and tensor.dtype != torch.float64


class _CastTogether(torch.autograd.Function):
    """A weight of each task cast by one launch, into one buffer; a task whose weight gets no gradient has none."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        copies = buffer(tensors[0], [tensor.shape for tensor in tensors], dtype)
        torch._foreach_copy_(copies, tensors)
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return (None, *(None if g is None else g.to(d) for g, d in zip(grads, ctx.dtypes, strict=True)))


def _autocast_kernel(op: Any, device: str) -> Callable[..., Any]:
    # torch.library.register_autocast fixes one dtype when it is called; this follows torch.autocast(dtype=...).
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def kernel(*args: Any) -> Any:
        cast = autocast_inputs(device, *args)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*cast)

    return kernel


def forbid_double_backward(name: str) -> Callable[..., Any]:
    """A gradient formula that refuses, for backward ops."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise DoubleBackwardError(name.removesuffix("_backward"))

    return refuse


class autograd_inside:
    """Lets torch's autograd record inside the kernel of an opaque op, for references that use it for their backward.

    The dispatcher masks autograd while a kernel runs; this lifts the mask for the block.
    """

    def __enter__(self) -> None:
        key, guard = torch._C.DispatchKey, torch._C._SetExcludeDispatchKeyGuard
        self._guards = [
            guard(key.AutogradFunctionality, False),
            guard(key.ADInplaceOrView, False),
            torch.enable_grad(),
        ]
        for entered in self._guards:
            entered.__enter__()

    def __exit__(self, *exception: Any) -> None:
        for entered in reversed(self._guards):
            entered.__exit__(*exception)
