"""frozen_linear: the public function, its schema, fake, autograd and backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import native
from ..activations import get_activation
from ..arguments import require_tensors
from ..backend import FusedOp, Implementation, requested_backend
from ..errors import ShapeError
from ..misfits import described, misfit
from ..opaque import autocast_inputs, define
from . import cpu, fallback, triton
from .packed import PackedLinear
from .reference import frozen_linear_reference

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["OP", "frozen_linear"]

_NAME = "frozen_linear"
OP = FusedOp(_NAME, packed=True, torch_is_as_fast=False)
OP.register("triton", triton.forward, triton.backward, triton.supports)
OP.register("cpu", cpu.forward, cpu.backward, cpu.supports)
OP.register("reference", fallback.forward, fallback.backward)


# Fewer rows than this read the weight once and multiply little: torch's own product does that as fast, and the weight
# takes less room than its panels.
_FEW_ROWS = 8


def _prefer_torch(x: Tensor, kind: str, wanted: str) -> bool:
    """Whether the automatic choice leaves a float32 product to torch; ``wanted`` is the backend asked for."""
    if kind != "float32" or wanted != "auto":
        return False
    if x.device.type == "cuda":
        return True
    if x.dtype != torch.float32:
        return False
    return x.numel() < _FEW_ROWS * x.shape[-1] or native.torch_product_is_fast()


def _select(x: Tensor, kind: str, packed: bool, wanted: str) -> Implementation:
    as_fast = _prefer_torch(x, kind, wanted)
    return OP.select(x.device.type, x.dtype, wanted, packed=packed, torch_is_as_fast=as_fast)


def _forward(x, weight, panels, panels_t, scale, bias, kind, activation, outliers=None):  # type: ignore[no-untyped-def]
    chosen = OP.running or _select(x, kind, panels is not None, requested_backend())
    return chosen.forward(x, weight, panels, panels_t, scale, bias, kind, activation, outliers)


def _backward(grad, weight, panels_t, scale, kind, outliers=None):  # type: ignore[no-untyped-def]
    chosen = OP.running or _select(grad, kind, panels_t is not None, requested_backend())
    # The scale of int8 weights runs along the axis that the gradient sums over: it multiplies the gradient.
    if chosen.backend == "reference":
        return chosen.backward(grad, weight, panels_t, kind, outliers)
    scaled = grad if scale is None else grad * scale.to(grad.dtype)
    dx = chosen.backward(scaled, weight, panels_t, kind, outliers)
    # The panels hold 0 in these columns.
    return dx if outliers is None else dx.index_copy_(-1, outliers, grad @ weight[:, outliers].to(grad.dtype))


_backward_op = define(
    f"{_NAME}_backward",
    "(Tensor grad, Tensor weight, Tensor? panels_t, Tensor? scale, str kind, Tensor? outliers) -> Tensor",
    _backward,
    lambda grad, weight, panels_t, scale, kind, outliers=None: grad.new_empty(*grad.shape[:-1], weight.shape[1]),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, _, panels_t, scale, bias, kind, _, outliers = inputs
    ctx.save_for_backward(weight, panels_t, scale, outliers)
    ctx.kind, ctx.bias = kind, bias is not None
    # Without panels for the gradient another implementation has to be found for it.
    ctx.chosen = OP.running if panels_t is not None else None


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, panels_t, scale, outliers = ctx.saved_tensors
    dx = db = None
    if ctx.needs_input_grad[0]:
        dx = OP.run(ctx.chosen, _backward_op, grad.contiguous(), weight, panels_t, scale, ctx.kind, outliers)
    if ctx.bias and ctx.needs_input_grad[5]:
        db = grad.reshape(-1, grad.shape[-1]).sum(0)
    return dx, None, None, None, None, db, None, None, None


_op = define(
    _NAME,
    "(Tensor x, Tensor weight, Tensor? panels, Tensor? panels_t, Tensor? scale, Tensor? bias, str kind, "
    "int activation, Tensor? outliers) -> Tensor",
    _forward,
    lambda x, weight, panels, panels_t, scale, bias, kind, activation, outliers=None: x.new_empty(
        *x.shape[:-1], weight.shape[0]
    ),
    setup_context=_save,
    backward=_gradient,
    autocast=False,
)


def frozen_linear(
    x: Float[Tensor, "*B Din"],
    packed: PackedLinear,
    bias: Float[Tensor, " O"] | None = None,
    *,
    activation: str | None = None,
) -> Float[Tensor, "*B O"]:
    """``activation(x W^T + bias)`` for a frozen, packed W [O, Din].

    Args:
        x: [..., Din].
        packed: The weight; it gets no gradient.
        bias: [O], or None; it may require a gradient.
        activation: A name of `hfadapt_kernels.ACTIVATIONS`, applied to the result.

    Returns:
        [..., O] in ``x.dtype``. ``float32`` panels sum in float32; ``bfloat16`` and ``int8`` panels multiply
        bfloat16 numbers and sum in float32. ``int8_dynamic`` rounds each row of x to int8 too and sums exactly; its
        gradient is that of the product with the rounded weight (straight-through). Under autocast x is cast first.

    Raises:
        ShapeError: The last axis of x is not Din, or bias is not [O], or one of them is on another device.
        BackendError: An explicitly requested backend cannot run.
    """
    if not isinstance(packed, PackedLinear):
        raise ShapeError(_NAME, "packed", expected="a PackedLinear", got=repr(packed)[:60], hint="Pack it once.")
    require_tensors(_NAME, ("x", "bias?"), x, bias)
    weight = packed.weight
    if x.shape[-1:] != weight.shape[1:]:
        hint = f"Pack the weight [O, {x.shape[-1] if x.dim() else 1}] of the linear that reads x."
        if x.shape[-1:] == weight.shape[:1]:
            hint = "Pack the weight as [O, Din]: PackedLinear.pack(weight.T)."
        raise ShapeError(_NAME, "x", expected=f"last axis {weight.shape[1]}", got=str(list(x.shape)), hint=hint)
    if bias is not None and (bias.shape != weight.shape[:1] or bias.device != weight.device):
        raise misfit(
            _NAME,
            "bias",
            bias,
            weight.shape[:1],
            bias if bias.device == weight.device else weight,
            "Give the bias of the linear that was packed, or None.",
            expected=f"[{weight.shape[0]}] on {weight.device}",
        )
    if x.device != weight.device:
        hint = f"Use x.to({str(weight.device)!r}), or pack weight.to({str(x.device)!r})."
        raise ShapeError(_NAME, "x", expected=f"one on {weight.device}, as the weight", got=described(x), hint=hint)
    (x,) = autocast_inputs(x.device.type, x)
    chosen = get_activation(activation, _NAME)
    differentiable = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    # The gradient of the activation needs its input: with gradients the activation runs outside of the op.
    fused = 0 if differentiable else chosen.code
    implementation = None
    if not torch.compiler.is_compiling():
        wanted = requested_backend()
        if _prefer_torch(x, packed.kind, wanted):
            return frozen_linear_reference(x, weight.detach(), bias, dtype=packed.kind, activation=chosen.name)
        packed.prepare(backward=differentiable and x.requires_grad, wanted=wanted)
        implementation = _select(x, packed.kind, packed._panels is not None, wanted)
    arguments = (
        x,
        weight.detach(),
        packed._panels,
        packed._panels_t,
        packed._scale,
        bias,
        packed.kind,
        fused,
        packed._outliers,
    )
    y = _op(*arguments) if implementation is None else OP.run(implementation, _op, *arguments)
    return chosen.fn(y) if differentiable and chosen.code else y
