"""Counts what an op does beside its kernels' arithmetic: copies between host and device, read-backs, launches.

In the interpreter host and device are one, so nothing is told by a tensor's device. What is counted are the calls that
would copy or wait where they are two: making tensors of numbers, and reading numbers out of tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import hfadapt_kernels as hk
from hfadapt_kernels import backend, batch
from hfadapt_kernels.testing import launches

# As torch calls them; the last are those whose result's size hangs on the numbers.
_OPS = {
    "_local_scalar_dense", "lift_fresh", "lift_fresh_copy", "is_nonzero", "equal", "item", "nonzero", "masked_select",
    "unique_consecutive", "_unique2", "bincount", "repeat_interleave",
}  # fmt: skip
_METHODS = {"item", "tolist", "cpu", "numpy", "cuda", "__int__", "__bool__", "__float__", "__index__", "pin_memory"}
_MAKERS = {"tensor", "as_tensor", "from_numpy", "asarray", "scalar_tensor"}
# Neither launched nor copied.
_FREE = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "view", "_unsafe_view",
    "expand", "alias", "slice", "t", "transpose", "as_strided", "split", "select", "unsqueeze", "squeeze", "permute",
    "view_as", "unflatten", "set_", "resize_", "promote_types",
}  # fmt: skip
# Where they have nothing to change.
_MAYBE_FREE = {"reshape", "contiguous", "to", "flatten"}


def _same(result: Any, source: Any) -> bool:
    return result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()


@dataclass
class Counts:
    """What was seen: ``transfers`` by name, ``computed`` (torch's own launches) and ``launched`` (Triton's)."""

    transfers: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    launched: list[str] = field(default_factory=list)


class _Functions(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _METHODS | _MAKERS:
            self.counts.transfers.append(name)
        return func(*args, **(kwargs or {}))


class _Ops(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().split("::")[1].split(".")[0]
        if name in _OPS or (name == "_to_copy" and kwargs.get("device") is not None):
            self.counts.transfers.append(name)
        result = func(*args, **kwargs)
        if func.namespace == "aten" and name not in _FREE and not (name in _MAYBE_FREE and _same(result, args[0])):
            self.counts.computed.append(name)
        return result


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


@contextlib.contextmanager
def watched() -> Iterator[Counts]:
    """Count what the block does, inside the ops' Triton implementations and around them; ids count as a device's."""
    counts, ops = Counts(), list(backend._OPS.values())
    before = [op._by_backend["triton"] for op in ops]

    def seen(function: Any) -> Any:
        # A mode does not see what an op does that it was told of.
        def call(*arguments: Any) -> Any:
            inside = Counts(counts.transfers, counts.computed)
            with _Functions(inside), _Ops(inside):
                return function(*arguments)

        return call

    for op, plain in zip(ops, before, strict=True):
        op._by_backend["triton"] = replace(plain, forward=seen(plain.forward), backward=seen(plain.backward))
        op._chosen.clear()
    on_host, batch.on_host = batch.on_host, lambda ids: False
    outside = Counts(counts.transfers)
    try:
        plainly = launches(_unwatched)
        with hk.use_backend("triton"), plainly as counts.launched, _Functions(outside), _Ops(outside):
            yield counts
    finally:
        batch.on_host = on_host
        for op, plain in zip(ops, before, strict=True):
            op._by_backend["triton"] = plain
            op._chosen.clear()
