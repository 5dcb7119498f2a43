"""Prefix attention in plain PyTorch: the formula to read, the float64 truth of the tests, and the fallback backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import segments_of
from ..dropout import keep_scale
from ..rows import rowwise

__all__ = ["FORMS", "PREFIX_COLUMN", "prefix_attention_reference"]

# softmax: one softmax over [P_t; K] (prefix tuning, He et al. 2022, eq. 7). no_gating: attention plus softmax over the
# prefix alone (their ablation). relu: attention plus relu over the prefix (their multi-head parallel adapter).
FORMS = ("softmax", "no_gating", "relu")
# The dropout stream of prefix columns: far from every real column, so that a real key's mask never depends on P.
PREFIX_COLUMN = 1 << 31


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """``[n, H, T, X] @ [n or 1, G, X, S] -> [n, H, T, S]``: the H / G query heads of a group share its columns."""
    n, heads, tokens, _ = rows.shape
    groups, size = columns.shape[1], columns.shape[3]
    folded = rows.reshape(n, groups, heads // groups * tokens, rows.shape[3])
    return rowwise(torch.matmul, folded, columns.expand(n, -1, -1, -1)).reshape(n, heads, tokens, size)


def _exponentials(scores: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    exponentials = rowwise(torch.exp, scores - peak)
    return exponentials, rowwise(lambda one: one.sum(-1, keepdim=True), exponentials)


def _peak(scores: Tensor) -> Tensor:
    """Largest score of each row; finite also where everything is masked or there is no column."""
    lowest = torch.finfo(scores.dtype).min
    if scores.shape[-1] == 0:
        return scores.new_full((*scores.shape[:-1], 1), lowest)
    return scores.detach().amax(-1, keepdim=True).clamp_min(lowest)


def _real_scores(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scaling: float, position_bias: Tensor | None
) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = _product(query, key.transpose(-1, -2)).to(wide) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if causal:
        queries, keys = scores.shape[-2:]
        # The last query sees every key: query i stands at position keys - queries + i.
        visible = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores


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
    if query.dtype == torch.float16 and query.device.type == "cpu":
        # torch's float16 product on CPU is a hundred times slower than its float32 product.
        pk, pv = [p.float() for p in prefix_key], [p.float() for p in prefix_value]
        rest = (ids, mask, position_bias, causal, scaling, form, dropout, seed)
        out, gate = prefix_attention_reference(query.float(), key.float(), value.float(), pk, pv, *rest)
        return out.half(), gate
    batch, heads, tokens, _ = query.shape
    scores = _real_scores(query, key, mask, causal, scaling, position_bias)
    out = scores.new_empty(query.shape, dtype=query.dtype)
    gate = scores.new_zeros(query.shape[:-1])
    line = torch.arange(batch * heads * tokens, device=query.device).view(batch, heads, tokens, 1)

    def weigh(probabilities: Tensor, values: Tensor, rows: slice | Tensor, first_column: int) -> Tensor:
        columns = torch.arange(probabilities.shape[-1], device=query.device) + first_column
        keep = keep_scale(seed, line[rows], columns, dropout, probabilities.dtype)
        probabilities = probabilities if keep is None else probabilities * keep
        return _product(probabilities.to(values.dtype), values)

    outs, gates, order = [], [], []
    for segment in segments_of([0] * batch if ids is None else ids.tolist(), query.device):
        rows, real, values = segment.rows, scores[segment.rows], value[segment.rows]
        if segment.task < 0 or prefix_key[segment.task].shape[1] == 0:
            e, total = _exponentials(real, _peak(real))
            part = weigh(e / total.clamp_min(1e-30), values, rows, 0)
            share = torch.zeros_like(total)
        else:
            pk, pv = prefix_key[segment.task][None], prefix_value[segment.task][None]
            extra = _product(query[rows], pk.transpose(-1, -2).to(query.dtype)).to(real.dtype) * scaling
            peak_real, peak_extra = _peak(real), _peak(extra)
            if form == "softmax":
                peak_real = peak_extra = torch.maximum(peak_real, peak_extra)
            e, sum_e = _exponentials(real, peak_real)
            f, sum_f = _exponentials(extra, peak_extra)
            total = sum_e + sum_f if form == "softmax" else sum_e.clamp_min(1e-30)
            share = sum_f / total if form == "softmax" else torch.zeros_like(total)
            weights = {"softmax": f / total, "no_gating": f / sum_f, "relu": extra.relu()}[form]
            part = weigh(e / total, values, rows, 0) + weigh(weights, pv, rows, PREFIX_COLUMN)
        outs.append(part.to(query.dtype))
        gates.append(share.squeeze(-1))
        order.append(rows)
    return _assemble(out, outs, order), _assemble(gate, gates, order)


def _assemble(like: Tensor, parts: list[Tensor], order: list[slice | Tensor]) -> Tensor:
    """Put the segments' rows back where they came from."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return torch.zeros_like(like)
    every = torch.arange(like.shape[0], device=like.device)
    back = torch.argsort(torch.cat([every[rows] for rows in order]))
    return torch.cat(parts)[back]
