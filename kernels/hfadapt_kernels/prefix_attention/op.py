"""``hfadapt::prefix_attention``: public function, argument checks, schema, fake, autograd and dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import opaque
from ..backend import FusedOp
from ..batch import TaskBatch, check_ids
from ..dropout import check_probability, choose_dropout
from .checks import check_arguments
from .reference import prefix_attention_reference

__all__ = ["OP", "prefix_attention"]

OP = FusedOp("prefix_attention", form="softmax", head_dim=64)
_Grads = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Sequence[Tensor],
    prefix_value: Sequence[Tensor],
    batch: TaskBatch,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    form: str = "softmax",
    dropout: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
    return_gate: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over ``[P_t; K]`` where every row has its own task t; nothing is concatenated in memory.

    ``out = (1 - gate) softmax(q K^T) V + gate softmax(q P_k^T) P_v`` (He et al. 2022, arXiv:2110.04366, eq. 7).
    ``form="no_gating"`` adds the two softmaxes instead; ``form="relu"`` gives ``attention + relu(q P_k^T) P_v``.

    Args:
        query: [B, H, Tq, K].
        key: [B, G, Tk, K], H a multiple of G (grouped-query heads). The prefix is not part of a cache's keys.
        value: [B, G, Tk, K].
        prefix_key: One [G, P, K] a task; lengths P may differ between tasks, and may be 0.
        prefix_value: As ``prefix_key``.
        batch: Task of every row. A row with id -1 has no prefix: plain attention.
        mask: Which real keys are seen, broadcast to [B, H, Tq, Tk]: bool (True attends) or additive. Every query sees
            the whole prefix. A row that may see nothing at all gives zeros.
        causal: Query i sees real keys up to ``Tk - Tq + i``: the last query sees all, as with a KV cache.
        scaling: Factor on the products; ``K ** -0.5`` when ``None``.
        position_bias: Added to the scores of real keys, [1 or B, H, Tq, Tk] (T5); differentiable.
        form: ``softmax``, ``no_gating`` or ``relu``.
        dropout: Probability of dropping an attention probability; used when ``training``.
        training: Whether dropout is on.
        seed: int64 [1] that fixes the dropout mask; drawn from torch's generator when needed and ``None``.
        return_gate: Return the gate too (form ``softmax`` only).

    Returns:
        [B, H, Tq, K] in the query's dtype (in memory [B, Tq, H, K]), and with ``return_gate`` the gate [B, H, Tq],
        float32 or float64: the share of the attention that went to the prefix.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        RowIdError: A task id is out of range.
        UnsupportedError: Unknown form, or the gate of a form that has none.
        BackendError: A backend asked for by name cannot run.
    """
    check_probability("prefix_attention", dropout)
    batch.check("prefix_attention")
    factor = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    tensors = (query, key, value, list(prefix_key), list(prefix_value))
    query, key, value, pk, pv = opaque.autocast_inputs(query.device.type, *tensors)
    if mask is not None and mask.is_floating_point() and mask.requires_grad:
        # Both are added to the scores of real keys; only the bias has a gradient.
        position_bias, mask = (mask if position_bias is None else position_bias + mask), None
    check_arguments(query, key, value, pk, pv, batch, mask, position_bias, form, return_gate)
    if position_bias is not None and position_bias.dim() == 4 and position_bias.shape[1:] != _score_shape(query, key):
        position_bias = position_bias.expand(-1, *_score_shape(query, key))
    dropout, seed = choose_dropout("prefix_attention", dropout, training, seed, query.device)
    rest = (batch.op_ids, mask, position_bias, causal, factor, form, dropout, seed)
    if not torch.compiler.is_compiling() and _select(query, form).backend == "reference":
        out, gate = prefix_attention_reference(query, key, value, pk, pv, *rest)
    else:
        out, gate, _ = _forward_op(query, key, value, pk, pv, *rest)
    return (out, gate) if return_gate else out


def _score_shape(query: Tensor, key: Tensor) -> tuple[int, int, int]:
    return query.shape[1], query.shape[2], key.shape[2]


def _select(query: Tensor, form: str) -> Any:
    return OP.select(query.device.type, query.dtype, form=form, head_dim=query.shape[-1])


_FORWARD_ARGS = (
    "Tensor query, Tensor key, Tensor value, Tensor[] prefix_key, Tensor[] prefix_value, Tensor? ids, Tensor? mask, "
    "Tensor? position_bias, bool causal, float scaling, str form, float dropout, Tensor? seed"
)
_FORWARD_SCHEMA = f"({_FORWARD_ARGS}) -> (Tensor out, Tensor gate, Tensor lse)"
_BACKWARD_SCHEMA = (
    f"(Tensor grad_out, Tensor? grad_gate, {_FORWARD_ARGS}, Tensor out, Tensor gate, Tensor lse, bool[] needs) -> "
    "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias, Tensor[] grad_prefix_key, "
    "Tensor[] grad_prefix_value)"
)


def _kernel(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    check_ids("prefix_attention", args[5], len(args[3]))
    return _select(args[0], args[10]).forward(*args)


def _backward_kernel(grad_out: Tensor, grad_gate: Tensor | None, *args: Any) -> _Grads:
    return _select(args[0], args[10]).backward(grad_out, grad_gate, *args)


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
) -> _Grads:
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


def _fake(query: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_results(query)


def _backward_fake(grad_out: Tensor, grad_gate: Tensor | None, *args: Any) -> _Grads:
    query, key, _, prefix_key, prefix_value, _, _, bias = args[:8]
    return empty_gradients(query, key, prefix_key, prefix_value, bias, args[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, pk, pv, ids, mask, bias, causal, scaling, form, dropout, seed = inputs
    ctx.save_for_backward(query, key, value, ids, mask, bias, seed, *output, *pk, *pv)
    ctx.tasks = len(pk)
    ctx.options = (causal, scaling, form, dropout)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_gate: Tensor | None, _: Any) -> tuple[Any, ...]:
    query, key, value, ids, mask, bias, seed, out, gate, lse, *prefix = ctx.saved_tensors
    pk, pv = prefix[: ctx.tasks], prefix[ctx.tasks :]
    if grad_out is None and grad_gate is None:
        return (None,) * 13
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    need = ctx.needs_input_grad
    wanted = [need[0], need[1] or need[2], need[7], any(need[3]) or any(need[4])]
    causal, scaling, form, dropout = ctx.options
    dq, dk, dv, dbias, dpk, dpv = _backward_op(
        grad_out, grad_gate, query, key, value, pk, pv, ids, mask, bias, causal, scaling, form, dropout, seed,
        out, gate, lse, wanted,
    )  # fmt: skip
    has_row = _tasks_with_rows(ids, ctx.tasks)
    prefix_grads = [
        [grad if wanted and present else None for grad, wanted, present in zip(grads, needs, has_row, strict=True)]
        for grads, needs in ((dpk, need[3]), (dpv, need[4]))
    ]
    return (
        dq if need[0] else None,
        dk if need[1] else None,
        dv if need[2] else None,
        *prefix_grads,
        None,
        None,
        dbias if need[7] else None,
        *(None,) * 5,
    )


def _tasks_with_rows(ids: Tensor | None, tasks: int) -> list[bool]:
    """Which tasks get a gradient: those without a row must not move, not even by weight decay."""
    # While a graph is traced the ids are a subclass of Tensor without values; on a GPU reading them would wait for it.
    if ids is None or ids.device.type != "cpu" or type(ids) is not Tensor:
        return [True] * tasks
    seen = set(ids.tolist())
    return [task in seen for task in range(tasks)]


_forward_op = opaque.define(
    "prefix_attention", _FORWARD_SCHEMA, _kernel, _fake, setup_context=_setup_context, backward=_backward
)
_backward_op = opaque.define(
    "prefix_attention_backward", _BACKWARD_SCHEMA, _backward_kernel, _backward_fake, autocast=False
)
