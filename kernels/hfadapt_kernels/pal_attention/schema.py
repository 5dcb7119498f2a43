"""Schema, fake and autograd of ``hfadapt::pal_attention``, and its registry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import opaque
from ..backend import FusedOp
from ..batch import check_ids, tasks_with_rows
from .weights import FAMILIES

__all__ = ["OP", "empty_gradients", "empty_results", "forward_op"]

OP = FusedOp("pal_attention", head_dim=34, same_size=True)

_ARGS = (
    "Tensor x, Tensor[] weights, bool[] present, Tensor? ids, Tensor? mask, int num_heads, bool causal, "
    "str activation, float dropout, Tensor? seed"
)
_FORWARD_SCHEMA = f"({_ARGS}, bool save) -> (Tensor out, Tensor hidden, Tensor lse, Tensor pre)"
_BACKWARD_SCHEMA = (
    f"(Tensor grad, {_ARGS}, Tensor hidden, Tensor lse, Tensor pre, bool[] needs) -> "
    "(Tensor grad_x, Tensor[] grad_weights)"
)
Results = tuple[Tensor, Tensor, Tensor, Tensor]


def select(x: Tensor, weights: list[Tensor], present: list[bool], num_heads: int) -> Any:
    """The implementation that serves a call."""
    tasks = len(weights) // sum(present)
    sizes = {encoder.shape[0] for encoder in weights[:tasks]}
    return OP.select(x.device.type, x.dtype, head_dim=min(sizes) // num_heads, same_size=len(sizes) == 1)


def empty_results(
    x: Tensor, weights: list[Tensor], present: list[bool], num_heads: int, activation: str, save: bool
) -> Results:
    """Empty ``out`` and what the backward reads: rank rows, log-sum-exps, and what it needs of the decoder's output.

    The rank rows are encoded, query, key, value, mixed and, with an output projection, projected; S rounded up to 32.
    ``pre`` is the decoder's output before the activation, or (C++) the activation's derivative there.
    """
    batch, tokens, dim = x.shape
    tasks, pieces = len(weights) // sum(present), 6 if present[FAMILIES.index("output")] else 5
    size = max(encoder.shape[0] for encoder in weights[:tasks])
    out, nothing = x.new_empty(x.shape), (0,)
    return (
        out,
        x.new_empty((pieces, batch * tokens, -(-size // 32) * 32) if save else nothing),
        x.new_empty((batch, num_heads, tokens) if save else nothing, dtype=torch.float32),
        x.new_empty((batch * tokens, dim) if save and activation != "identity" else nothing),
    )


def empty_gradients(x: Tensor, weights: list[Tensor], needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """Empty gradients of x and of the weights; those not needed have no element."""
    need_x, *need = needs
    grads = [w.new_empty(w.shape if wanted else (0,)) for w, wanted in zip(weights, need, strict=True)]
    return x.new_empty(x.shape if need_x else (0,)), grads


def _kernel(*args: Any) -> Results:
    check_ids("pal_attention", args[3], len(args[1]) // sum(args[2]))
    return select(args[0], args[1], args[2], args[5]).forward(*args)


def _backward_kernel(grad: Tensor, *args: Any) -> tuple[Tensor, list[Tensor]]:
    return select(args[0], args[1], args[2], args[5]).backward(grad, *args)


def _fake(*args: Any) -> Results:
    x, weights, present, _, _, num_heads, _, activation = args[:8]
    return empty_results(x, weights, present, num_heads, activation, args[-1])


def _backward_fake(grad: Tensor, x: Tensor, weights: list[Tensor], *rest: Any) -> tuple[Tensor, list[Tensor]]:
    return empty_gradients(x, weights, rest[-1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    x, weights, present, ids, mask, num_heads, causal, activation, dropout, seed, _ = inputs
    ctx.save_for_backward(x, ids, mask, seed, *output[1:], *weights)
    ctx.present, ctx.options = list(present), (num_heads, causal, activation, dropout)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    x, ids, mask, seed, *saved = ctx.saved_tensors
    hidden, lse, pre, *weights = saved
    need_x, need_weights = ctx.needs_input_grad[0], list(ctx.needs_input_grad[1])
    if grad is None or not (need_x or any(need_weights)):
        return (None, [None] * len(weights), *(None,) * 9)
    num_heads, causal, activation, dropout = ctx.options
    dx, dw = _backward_op(
        grad, x, weights, ctx.present, ids, mask, num_heads, causal, activation, dropout, seed,
        hidden, lse, pre, [need_x, *need_weights],
    )  # fmt: skip
    tasks = len(weights) // sum(ctx.present)
    present = tasks_with_rows(ids, tasks) * sum(ctx.present)
    grads = [g if need and here else None for g, need, here in zip(dw, need_weights, present, strict=True)]
    return (dx if need_x else None, grads, *(None,) * 9)


forward_op = opaque.define("pal_attention", _FORWARD_SCHEMA, _kernel, _fake, setup_context=_setup, backward=_backward)
_backward_op = opaque.define(
    "pal_attention_backward", _BACKWARD_SCHEMA, _backward_kernel, _backward_fake, autocast=False
)
