"""Projected attention layers in plain PyTorch: the formula, the tests' float64 truth, the fallback backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..activations import get_activation
from ..dropout import keep_scale
from ..rows import row_linear, rowwise
from .weights import PalWeights

__all__ = ["pal_attention_reference", "projected_attention"]


def projected_attention(
    x: Tensor,
    w: PalWeights,
    mask: Tensor | None,
    num_heads: int,
    causal: bool,
    activation: str,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """``act(V_D MHA(V_E x))`` of one task for x [B, T, D] (Stickland & Murray 2019, arXiv:1902.02671, section 3).

    ``rows`` int64 [B] are the rows' positions in the whole batch: the dropout mask hangs on them.
    """
    batch, tokens, _ = x.shape
    low = row_linear(x, w.encoder, w.encoder_bias)
    q, k, v = (
        row_linear(low, weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for weight, bias in ((w.query, w.query_bias), (w.key, w.key_bias), (w.value, w.value_bias))
    )
    scores = rowwise(lambda one, other: one @ other.transpose(-1, -2), q, k)
    scores = scores.to(torch.promote_types(x.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if causal:
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    # A token that may see nothing gets zeros, forward and backward, instead of NaN.
    blind = (scores == float("-inf")).all(-1, keepdim=True)
    weights = rowwise(lambda one: one.softmax(-1), scores.masked_fill(blind, 0.0)).masked_fill(blind, 0.0)
    if seed is not None:
        rows = torch.arange(batch, device=x.device) if rows is None else rows
        heads, queries = torch.arange(num_heads, device=x.device), torch.arange(tokens, device=x.device)
        position = (rows.view(-1, 1, 1, 1) * num_heads + heads.view(-1, 1, 1)) * tokens + queries.view(-1, 1)
        keep = keep_scale(seed, position, queries, dropout, weights.dtype)
        weights = weights if keep is None else weights * keep
    mixed = rowwise(torch.matmul, weights.to(v.dtype), v).transpose(1, 2).flatten(2)
    if w.output is not None:
        mixed = row_linear(mixed, w.output, w.output_bias)
    return rowwise(get_activation(activation).fn, row_linear(mixed, w.decoder, w.decoder_bias))


def pal_attention_reference(
    x: Tensor,
    weights: Sequence[PalWeights],
    ids: Tensor | None,
    mask: Tensor | None,
    num_heads: int,
    causal: bool,
    activation: str,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """`projected_attention` for rows of different tasks.

    Args:
        x: [B, T, D].
        weights: One a task.
        ids: int64 [B]; rows with -1 get zeros. ``None``: all rows have task 0.
        mask: ``None``, or [B or 1, 1, 1 or T, T], bool (True attends) or additive.
        num_heads: Number of heads H, a divisor of every task's pal size.
        causal: Token i sees tokens up to i.
        activation: Applied after the decoder.
        dropout: Probability of dropping an attention probability.
        seed: int64 [1], or ``None`` for no dropout.
    """
    options = (num_heads, causal, activation, dropout, seed)
    if ids is None:
        return projected_attention(x, weights[0], mask, *options)
    tasks = ids.tolist()
    out = x.new_zeros(*x.shape[:-1], x.shape[-1])
    order, parts = [], []
    for task in sorted(set(tasks) - {-1}):
        rows = torch.tensor([row for row, other in enumerate(tasks) if other == task], device=x.device)
        own = mask if mask is None or mask.shape[0] == 1 else mask.index_select(0, rows)
        order.append(rows)
        parts.append(projected_attention(x.index_select(0, rows), weights[task], own, *options, rows))
    return out.index_copy(0, torch.cat(order), torch.cat(parts)) if order else out
