"""Schema, fake and autograd of the opaque core ``hfadapt::adapter_fusion``, and its registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import opaque
from ..backend import FusedOp
from .rank_space import CoreInputs

__all__ = ["OP", "Gradients", "empty_gradients", "empty_results", "forward_op", "select"]

OP = FusedOp("adapter_fusion", adapters=8)

# The fields of `CoreInputs`. A forward takes these and returns (weighted, weights); a backward takes
# (grad_weighted, grad_weights or None, weights, these, need_hidden) and returns `Gradients`.
_ARGS = "Tensor products, Tensor[] hidden, Tensor? shift, float temperature, float dropout, Tensor? seed"
Gradients = tuple[Tensor, list[Tensor], Tensor]


def select(core: CoreInputs) -> Any:
    """The implementation that serves a call."""
    return OP.select(core.products.device.type, core.products.dtype, adapters=len(core.hidden))


def empty_results(products: Tensor, adapters: int) -> tuple[Tensor, Tensor]:
    """Empty ``p z`` and p."""
    stats = torch.promote_types(products.dtype, torch.float32)
    return products.new_empty(products.shape), products.new_empty(products.shape[0], adapters, dtype=stats)


def empty_gradients(products: Tensor, hidden: Sequence[Tensor], shift: Tensor | None, need_hidden: bool) -> Gradients:
    """Empty gradients of products, hidden and shift; those that are not needed have no element."""
    return (
        products.new_empty(products.shape),
        [z.new_empty(z.shape) if need_hidden else z.new_empty(0) for z in hidden],
        products.new_empty(0) if shift is None else shift.new_empty(shift.shape),
    )


def _kernel(*args: Any) -> tuple[Tensor, Tensor]:
    return select(CoreInputs(*args)).forward(*args)


def _backward_kernel(grad_weighted: Tensor, grad_weights: Tensor | None, weights: Tensor, *args: Any) -> Gradients:
    return select(CoreInputs(*args[:-1])).backward(grad_weighted, grad_weights, weights, *args)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    core = CoreInputs(*args)
    return empty_results(core.products, len(core.hidden))


def _backward_fake(grad_weighted: Tensor, grad_weights: Tensor | None, weights: Tensor, *args: Any) -> Gradients:
    core = CoreInputs(*args[:-1])
    return empty_gradients(core.products, core.hidden, core.shift, args[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    core = CoreInputs(*inputs)
    ctx.save_for_backward(core.products, core.shift, core.seed, output[1], *core.hidden)
    ctx.options = (core.temperature, core.dropout)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_weighted: Tensor | None, grad_weights: Tensor | None) -> tuple[Any, ...]:
    products, shift, seed, weights, *hidden = ctx.saved_tensors
    if grad_weighted is None and grad_weights is None:
        return (None,) * 6
    if grad_weighted is None:
        grad_weighted = torch.zeros_like(products)
    need = ctx.needs_input_grad
    temperature, dropout = ctx.options
    core = CoreInputs(products, hidden, shift, temperature, dropout, seed)
    grad_products, grad_hidden, grad_shift = _backward_op(grad_weighted, grad_weights, weights, *core, any(need[1]))
    return (
        grad_products if need[0] else None,
        [grad if wanted else None for grad, wanted in zip(grad_hidden, need[1], strict=True)],
        grad_shift if need[2] else None,
        None,
        None,
        None,
    )


forward_op = opaque.define(
    "adapter_fusion",
    f"({_ARGS}) -> (Tensor weighted, Tensor weights)",
    _kernel,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = opaque.define(
    "adapter_fusion_backward",
    f"(Tensor grad_weighted, Tensor? grad_weights, Tensor weights, {_ARGS}, bool need_hidden) -> "
    "(Tensor grad_products, Tensor[] grad_hidden, Tensor grad_shift)",
    _backward_kernel,
    _backward_fake,
    autocast=False,
)
