"""``hfadapt::prefix_attention``: what backends are handed, fakes, autograd and dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import opaque
from ..backend import FusedOp, Implementation
from ..batch import check_ids, tasks_with_rows
from ..calls import arguments_of, keep, kept

__all__ = ["OP", "Backward", "Forward", "empty_gradients", "empty_results", "forward_op", "select"]

OP = FusedOp("prefix_attention", form="softmax", head_dim=64)
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]


class Forward(NamedTuple):
    """Arguments of the forward. It returns out, gate and lse (see `empty_results`).

    Attributes:
        query: [B, H, Tq, K].
        key: [B, G, Tk, K].
        value: [B, G, Tk, K].
        prefix_key: One [G, P, K] a task.
        prefix_value: One [G, P, K] a task.
        ids: int64 [B], -1 for rows without a prefix; ``None``: all rows have task 0.
        mask: Which real keys are seen, bool (True attends) or additive, broadcast to [B, H, Tq, Tk], or ``None``.
        position_bias: Additive, [1 or B, H, Tq, Tk], or ``None``.
        causal: Query i of Tq sees real keys up to ``Tk - Tq + i``.
        scaling: Factor on the products.
        form: One of `reference.FORMS`.
        dropout: Probability of dropping a probability.
        seed: int64 [1], or ``None`` for no dropout.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    prefix_key: list[Tensor]
    prefix_value: list[Tensor]
    ids: Tensor | None
    mask: Tensor | None
    position_bias: Tensor | None
    causal: bool
    scaling: float
    form: str
    dropout: float
    seed: Tensor | None


class Backward(NamedTuple):
    """Arguments of the backward: gradients of out and gate, what the forward was given and returned.

    ``needs`` says which gradients are wanted: query; key and value; position_bias; prefixes.
    """

    grad_out: Tensor
    grad_gate: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor
    prefix_key: list[Tensor]
    prefix_value: list[Tensor]
    ids: Tensor | None
    mask: Tensor | None
    position_bias: Tensor | None
    causal: bool
    scaling: float
    form: str
    dropout: float
    seed: Tensor | None
    out: Tensor
    gate: Tensor
    lse: Tensor
    needs: list[bool]

    @property
    def inputs(self) -> Forward:
        """What the forward was given."""
        return Forward(*self[2:15])


def select(call: Forward) -> Implementation:
    """The implementation that serves a call."""
    query = call.query
    return OP.select(query.device.type, query.dtype, form=call.form, head_dim=query.shape[-1])


def empty_like_heads(tensor: Tensor) -> Tensor:
    """An empty [B, H, T, K] whose memory is [B, T, H, K], as the layers around attention want it."""
    batch, heads, tokens, dim = tensor.shape
    return tensor.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def stats_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of the gate and of the log-sum-exps: float32, or float64 for float64 inputs."""
    return torch.promote_types(tensor.dtype, torch.float32)


def empty_results(query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty ``out``, ``gate`` and ``lse`` [2, B, H, Tq] (of the real part and of the prefix part)."""
    rows, dtype = query.shape[:-1], stats_dtype(query)
    return empty_like_heads(query), query.new_empty(rows, dtype=dtype), query.new_empty((2, *rows), dtype=dtype)


def empty_gradients(
    query: Tensor,
    key: Tensor,
    prefix_key: Sequence[Tensor],
    prefix_value: Sequence[Tensor],
    bias: Tensor | None,
    needs: list[bool],
) -> Gradients:
    """Empty gradients; those that are not needed have no element. ``needs``: query, key and value, bias, prefix."""
    nothing = query.new_empty(0)
    need_query, need_key, need_bias, need_prefix = needs
    return (
        empty_like_heads(query) if need_query else nothing,
        empty_like_heads(key) if need_key else nothing,
        empty_like_heads(key) if need_key else query.new_empty(0),
        bias.new_empty(bias.shape) if need_bias and bias is not None else query.new_empty(0),
        [p.new_empty(p.shape) if need_prefix else p.new_empty(0) for p in prefix_key],
        [p.new_empty(p.shape) if need_prefix else p.new_empty(0) for p in prefix_value],
    )


def _kernel(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Forward(*args)
    if OP.running is None:  # the public function has looked at them
        check_ids("prefix_attention", call.ids, len(call.prefix_key))
    return (OP.running or select(call)).forward(*args)


def _backward_kernel(*args: Any) -> Gradients:
    return (OP.running or select(Backward(*args).inputs)).backward(*args)


def _fake(query: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_results(query)


def _backward_fake(*args: Any) -> Gradients:
    call = Backward(*args)
    return empty_gradients(call.query, call.key, call.prefix_key, call.prefix_value, call.position_bias, call.needs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    out, gate, lse = output
    keep(ctx, **Forward(*inputs)._asdict(), out=out, gate=gate, lse=lse)
    ctx.chosen = OP.running
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_gate: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad_out is None and grad_gate is None:
        return (None,) * 13
    need, inputs = Forward(*ctx.needs_input_grad), kept(ctx)
    if grad_out is None:
        grad_out = torch.zeros_like(inputs["out"])
    prefix = (need.prefix_key, need.prefix_value)
    wanted = [need.query, need.key or need.value, need.position_bias, any(prefix[0]) or any(prefix[1])]
    call = Backward(grad_out=grad_out, grad_gate=grad_gate, needs=wanted, **inputs)
    dq, dk, dv, dbias, *dprefix = OP.run(ctx.chosen, _backward_op, *call)
    present = tasks_with_rows(call.ids, len(call.prefix_key))
    return (
        dq if need.query else None,
        dk if need.key else None,
        dv if need.value else None,
        *(
            [grad if wanted and here else None for grad, wanted, here in zip(grads, needs, present, strict=True)]
            for grads, needs in zip(dprefix, prefix, strict=True)
        ),
        None,
        None,
        dbias if need.position_bias else None,
        *(None,) * 5,
    )


forward_op = opaque.define(
    "prefix_attention",
    f"({arguments_of(Forward)}) -> (Tensor out, Tensor gate, Tensor lse)",
    _kernel,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = opaque.define(
    "prefix_attention_backward",
    f"({arguments_of(Backward)}) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias, "
    "Tensor[] grad_prefix_key, Tensor[] grad_prefix_value)",
    _backward_kernel,
    _backward_fake,
    autocast=False,
)
