"""Prefix attention as written in the papers, row by row: the formula to read and the float64 truth of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dropout import keep_scale

__all__ = ["FORMS", "PREFIX_COLUMN", "prefix_attention_reference"]

# softmax: one softmax over [P_t; K] (prefix tuning, He et al. 2022, eq. 7). no_gating: attention plus softmax over the
# prefix alone (their ablation). relu: attention plus relu over the prefix (their multi-head parallel adapter).
FORMS = ("softmax", "no_gating", "relu")
# The dropout stream of prefix columns: far from every real column, so that a real key's mask never depends on P.
PREFIX_COLUMN = 1 << 31


def prefix_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Sequence[Tensor],
    prefix_value: Sequence[Tensor],
    ids: Tensor | None,
    mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    causal: bool = False,
    scaling: float = 1.0,
    form: str = "softmax",
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of every row over its task's prefix and its own keys.

    With ``e = exp(q K^T * scaling + bias)`` and ``f = exp(q P_k^T * scaling)``, the form ``softmax`` gives
    ``(e V + f P_v) / (sum e + sum f) = (1 - gate) softmax(q K^T) V + gate softmax(q P_k^T) P_v`` with
    ``gate = sum f / (sum e + sum f)``; see `FORMS` for the others. Mask, bias and causality act on real keys only.

    Args:
        query: [B, H, Tq, K].
        key: [B, G, Tk, K]; query head h reads group ``h * G // H``.
        value: [B, G, Tk, K].
        prefix_key: One [G, P, K] a task; P may differ and may be 0.
        prefix_value: As ``prefix_key``.
        ids: int64 [B], -1 for rows without a prefix; ``None`` when every row has task 0.
        mask: Bool (True attends) or additive, broadcast to [B, H, Tq, Tk].
        position_bias: Additive, [1 or B, H, Tq, Tk].
        causal: Query i of Tq sees real keys up to ``Tk - Tq + i``.
        scaling: Factor on the products.
        form: One of `FORMS`.
        dropout: Probability of dropping a probability (of either part).
        seed: int64 [1], or ``None`` for no dropout.

    Returns:
        The output [B, H, Tq, K] in the query's dtype, and the gate [B, H, Tq], float32 or wider (0 in rows without a
        prefix and in the other forms). A row that may see nothing at all gives zeros.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    rows, heads, queries, _ = query.shape
    groups, keys = key.shape[1:3]
    below = heads // groups * queries
    seen = torch.zeros(queries, keys, dtype=wide, device=query.device)
    if causal:
        seen = seen.masked_fill(torch.ones_like(seen, dtype=torch.bool).triu(keys - queries + 1), float("-inf"))
    if mask is not None:
        seen = seen.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else seen + mask
    if position_bias is not None:
        seen = seen + position_bias
    # The query heads of a group stand below each other: [B, G, H / G * Tq, ...].
    seen = seen.expand(rows, heads, queries, keys).reshape(rows, groups, below, keys)
    q = query.reshape(rows, groups, below, query.shape[-1])
    line = torch.arange(rows * heads * queries, device=query.device).view(rows, groups, below, 1)
    outs, gates = [], []
    for row in range(rows):
        task = 0 if ids is None else int(ids[row])
        has_prefix = task >= 0 and prefix_key[task].shape[1] > 0
        pk, pv = (prefix_key[task], prefix_value[task]) if has_prefix else (key[row, :, :0], value[row, :, :0])
        real = (q[row] @ key[row].mT).to(wide) * scaling + seen[row]
        extra = (q[row] @ pk.mT).to(wide) * scaling
        tops = _peak(real), _peak(extra)
        top_real, top_extra = (torch.maximum(*tops),) * 2 if form == "softmax" else tops
        e, f = torch.exp(real - top_real), torch.exp(extra - top_extra)
        sum_e, sum_f = e.sum(-1, keepdim=True), f.sum(-1, keepdim=True)
        total = (sum_e + sum_f if form == "softmax" else sum_e).clamp_min(1e-30)
        w, p = e / total, {"softmax": f / total, "no_gating": f / sum_f, "relu": extra.relu()}[form]
        gates.append((sum_f / total if form == "softmax" else torch.zeros_like(total)).squeeze(-1))
        p = _drop(p, line[row], PREFIX_COLUMN, dropout, seed).to(value.dtype)
        w = _drop(w, line[row], 0, dropout, seed).to(value.dtype)
        outs.append(p @ pv + w @ value[row])
    if not rows:
        return torch.zeros_like(query), query.new_zeros(query.shape[:-1], dtype=wide)
    return torch.stack(outs).view(query.shape), torch.stack(gates).view(query.shape[:-1])


def _peak(scores: Tensor) -> Tensor:
    """Largest score of each row; finite also where everything is masked or there is no column."""
    lowest = scores.new_full((*scores.shape[:-1], 1), torch.finfo(scores.dtype).min)
    return torch.cat([scores.detach(), lowest], -1).amax(-1, keepdim=True)


def _drop(probabilities: Tensor, line: Tensor, first: int, dropout: float, seed: Tensor | None) -> Tensor:
    """Dropout by the hash of (row, head, query) and column, which begin at ``first``."""
    columns = torch.arange(probabilities.shape[-1], device=probabilities.device) + first
    keep = keep_scale(seed, line, columns, dropout, probabilities.dtype)
    return probabilities if keep is None else probabilities * keep
