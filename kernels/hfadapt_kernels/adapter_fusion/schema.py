"""The opaque core ``hfadapt::adapter_fusion``: what backends are handed, fakes, autograd and dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import opaque
from ..backend import FusedOp, Implementation
from ..calls import arguments_of, keep, kept
from .rank_space import CoreInputs

__all__ = ["OP", "Backward", "Gradients", "empty_gradients", "empty_results", "forward_op", "select"]

OP = FusedOp("adapter_fusion", adapters=8)

Gradients = tuple[Tensor, list[Tensor], Tensor]


class Backward(NamedTuple):
    """Arguments of the backward: gradients of the results, the weights p, and the fields of `CoreInputs`."""

    grad_weighted: Tensor
    grad_weights: Tensor | None
    weights: Tensor
    products: Tensor
    hidden: list[Tensor]
    shift: Tensor | None
    temperature: float
    dropout: float
    seed: Tensor | None
    need_hidden: bool

    @property
    def core(self) -> CoreInputs:
        """What the forward was given."""
        return CoreInputs(*self[3:-1])


def select(core: CoreInputs) -> Implementation:
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
    return (OP.running or select(CoreInputs(*args))).forward(*args)


def _backward_kernel(*args: Any) -> Gradients:
    return (OP.running or select(Backward(*args).core)).backward(*args)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    core = CoreInputs(*args)
    return empty_results(core.products, len(core.hidden))


def _backward_fake(*args: Any) -> Gradients:
    call = Backward(*args)
    return empty_gradients(call.products, call.hidden, call.shift, call.need_hidden)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    keep(ctx, weights=output[1], **CoreInputs(*inputs)._asdict())
    ctx.chosen = OP.running
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_weighted: Tensor | None, grad_weights: Tensor | None) -> tuple[Any, ...]:
    if grad_weighted is None and grad_weights is None:
        return (None,) * 6
    need, inputs = CoreInputs(*ctx.needs_input_grad), kept(ctx)
    if grad_weighted is None:
        grad_weighted = torch.zeros_like(inputs["products"])
    call = Backward(grad_weighted=grad_weighted, grad_weights=grad_weights, need_hidden=any(need.hidden), **inputs)
    grad_products, grad_hidden, grad_shift = OP.run(ctx.chosen, _backward_op, *call)
    return (
        grad_products if need.products else None,
        [grad if wanted else None for grad, wanted in zip(grad_hidden, need.hidden, strict=True)],
        grad_shift if need.shift else None,
        None,
        None,
        None,
    )


forward_op = opaque.define(
    "adapter_fusion",
    f"({arguments_of(CoreInputs)}) -> (Tensor weighted, Tensor weights)",
    _kernel,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = opaque.define(
    "adapter_fusion_backward",
    f"({arguments_of(Backward)}) -> (Tensor grad_products, Tensor[] grad_hidden, Tensor grad_shift)",
    _backward_kernel,
    _backward_fake,
    autocast=False,
)
