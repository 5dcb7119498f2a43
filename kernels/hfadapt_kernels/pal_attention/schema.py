"""``hfadapt::pal_attention``: what backends are handed, fakes, autograd and dispatch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import opaque
from ..backend import FusedOp, Implementation
from ..batch import check_ids, tasks_with_rows
from ..calls import arguments_of, keep, kept
from .weights import FAMILIES

__all__ = ["OP", "Backward", "Forward", "empty_gradients", "empty_results", "forward_op", "select"]

OP = FusedOp("pal_attention", head_dim=34, same_size=True)


class Forward(NamedTuple):
    """Arguments of the forward. It returns out, and hidden, lse and pre for the backward (see `empty_results`).

    Attributes:
        x: [B, T, D].
        weights: The weights of all tasks, as `weights.flatten` lays them out.
        present: Which families of weights there are.
        ids: int64 [B], -1 for rows that get zeros; ``None``: all rows have task 0.
        mask: [B or 1, 1, T or 1, T], bool (True attends) or additive, or ``None``.
        num_heads: Number of heads.
        causal: Token i sees tokens up to i.
        activation: Name of what follows the decoder.
        dropout: Probability of dropping an attention probability.
        seed: int64 [1], or ``None`` for no dropout.
        save: Whether a backward may follow.
    """

    x: Tensor
    weights: list[Tensor]
    present: list[bool]
    ids: Tensor | None
    mask: Tensor | None
    num_heads: int
    causal: bool
    activation: str
    dropout: float
    seed: Tensor | None
    save: bool


class Backward(NamedTuple):
    """Arguments of the backward: the gradient of out, what the forward was given and saved; needs: of x, weights."""

    grad: Tensor
    x: Tensor
    weights: list[Tensor]
    present: list[bool]
    ids: Tensor | None
    mask: Tensor | None
    num_heads: int
    causal: bool
    activation: str
    dropout: float
    seed: Tensor | None
    hidden: Tensor
    lse: Tensor
    pre: Tensor
    needs: list[bool]


Results = tuple[Tensor, Tensor, Tensor, Tensor]


def select(call: Forward | Backward) -> Implementation:
    """The implementation that serves a call."""
    tasks = len(call.weights) // sum(call.present)
    sizes = {encoder.shape[0] for encoder in call.weights[:tasks]}
    head_dim = min(sizes) // call.num_heads
    return OP.select(call.x.device.type, call.x.dtype, head_dim=head_dim, same_size=len(sizes) == 1)


def empty_results(call: Forward) -> Results:
    """Empty ``out`` and what the backward reads: rank rows, log-sum-exps, and what it needs of the decoder's output.

    The rank rows are encoded, query, key, value, mixed and, with an output projection, projected; S rounded up to 32.
    ``pre`` is the decoder's output before the activation, or (C++) the activation's derivative there.
    """
    x, save = call.x, call.save
    batch, tokens, dim = x.shape
    tasks, pieces = len(call.weights) // sum(call.present), 6 if call.present[FAMILIES.index("output")] else 5
    size = max(encoder.shape[0] for encoder in call.weights[:tasks])
    out, nothing = x.new_empty(x.shape), (0,)
    return (
        out,
        x.new_empty((pieces, batch * tokens, -(-size // 32) * 32) if save else nothing),
        x.new_empty((batch, call.num_heads, tokens) if save else nothing, dtype=torch.float32),
        x.new_empty((batch * tokens, dim) if save and call.activation != "identity" else nothing),
    )


def empty_gradients(x: Tensor, weights: list[Tensor], needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """Empty gradients of x and of the weights; those not needed have no element."""
    need_x, *need = needs
    grads = [w.new_empty(w.shape if wanted else (0,)) for w, wanted in zip(weights, need, strict=True)]
    return x.new_empty(x.shape if need_x else (0,)), grads


def _kernel(*args: Any) -> Results:
    call = Forward(*args)
    if OP.running is None:  # the public function has looked at them
        check_ids("pal_attention", call.ids, len(call.weights) // sum(call.present))
    return (OP.running or select(call)).forward(*args)


def _backward_kernel(*args: Any) -> tuple[Tensor, list[Tensor]]:
    return (OP.running or select(Backward(*args))).backward(*args)


def _fake(*args: Any) -> Results:
    return empty_results(Forward(*args))


def _backward_fake(*args: Any) -> tuple[Tensor, list[Tensor]]:
    call = Backward(*args)
    return empty_gradients(call.x, call.weights, call.needs)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    _, hidden, lse, pre = output
    call = Forward(*inputs)._asdict()
    del call["save"]
    keep(ctx, **call, hidden=hidden, lse=lse, pre=pre)
    ctx.chosen = OP.running
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_x, need_weights = ctx.needs_input_grad[0], list(ctx.needs_input_grad[1])
    if grad is None or not (need_x or any(need_weights)):
        return (None, [None] * len(need_weights), *(None,) * 9)
    call = Backward(grad=grad, needs=[need_x, *need_weights], **kept(ctx))
    dx, dw = OP.run(ctx.chosen, _backward_op, *call)
    families = sum(call.present)
    here = tasks_with_rows(call.ids, len(call.weights) // families) * families
    grads = [g if need and has_rows else None for g, need, has_rows in zip(dw, need_weights, here, strict=True)]
    return (dx if need_x else None, grads, *(None,) * 9)


forward_op = opaque.define(
    "pal_attention",
    f"({arguments_of(Forward)}) -> (Tensor out, Tensor hidden, Tensor lse, Tensor pre)",
    _kernel,
    _fake,
    setup_context=_setup,
    backward=_backward,
)
_backward_op = opaque.define(
    "pal_attention_backward",
    f"({arguments_of(Backward)}) -> (Tensor grad_x, Tensor[] grad_weights)",
    _backward_kernel,
    _backward_fake,
    autocast=False,
)
