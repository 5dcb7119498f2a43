"""The public function `prefix_attention`: argument checks and the choice of the path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import opaque
from ..arguments import require_finite, require_tensors
from ..batch import TaskBatch
from ..dropout import check_probability, choose_dropout
from . import cpu, fallback, triton
from .checks import check_arguments
from .schema import OP, Forward, forward_op, select

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

__all__ = ["prefix_attention"]

OP.register("triton", triton.forward, triton.backward, triton.supports)
OP.register("cpu", cpu.forward, cpu.backward, cpu.supports)
OP.register("reference", fallback.forward, fallback.backward)


def prefix_attention(
    query: Float[Tensor, "B H Tq K"],
    key: Float[Tensor, "B G Tk K"],
    value: Float[Tensor, "B G Tk K"],
    prefix_key: Sequence[Float[Tensor, "G _P K"]],
    prefix_value: Sequence[Float[Tensor, "G _P K"]],
    batch: TaskBatch,
    *,
    mask: Shaped[Tensor, "..."] | None = None,
    causal: bool = False,
    scaling: float | None = None,
    position_bias: Float[Tensor, "#B H Tq Tk"] | None = None,
    form: str = "softmax",
    dropout: float = 0.0,
    training: bool = False,
    seed: Int[Tensor, " 1"] | None = None,
    return_gate: bool = False,
) -> Float[Tensor, "B H Tq K"] | tuple[Float[Tensor, "B H Tq K"], Float[Tensor, "B H Tq"]]:
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
    names = ("query", "key", "value", "prefix_key", "prefix_value", "batch", "position_bias?")
    require_tensors("prefix_attention", names, query, key, value, prefix_key, prefix_value, batch, position_bias)
    if scaling is not None:
        require_finite("prefix_attention", "scaling", scaling)
    check_probability("prefix_attention", dropout)
    batch.check("prefix_attention", query.device)
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
    call = Forward(query, key, value, pk, pv, batch.op_ids, mask, position_bias, causal, factor, form, dropout, seed)
    chosen = None if torch.compiler.is_compiling() else select(call)
    if chosen is None:
        out, gate, _ = forward_op(*call)
    elif chosen.backend == "reference":
        out, gate = fallback.attend(call)
    else:
        out, gate, _ = OP.run(chosen, forward_op, *call)
    return (out, gate) if return_gate else out


def _score_shape(query: Tensor, key: Tensor) -> tuple[int, int, int]:
    return query.shape[1], query.shape[2], key.shape[2]
