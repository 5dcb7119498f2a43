"""Multi-head attention of a delta of its own, written in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hfadapt_kernels import rowwise

__all__ = ["attend"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    seen: Tensor | None,
    *,
    causal: bool = False,
    drop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Multi-head attention ``[B, T, S]``; a token that may see nothing gets zeros.

    Args:
        query: ``[B, T, S]``.
        key: ``[B, K, S]``.
        value: ``[B, K, S]``.
        num_heads: A divisor of S.
        seen: Bool ``[B, T, K]`` or ``[B, 1, K]``, True where a token may attend; None for everywhere.
        causal: With ``seen`` None: a token sees only those before it, and itself.
        drop: Dropout of the probabilities, or None.
    """
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    some = None if seen is None else seen.any(-1, keepdim=True).unsqueeze(1)
    mask = None if seen is None or some is None else seen.unsqueeze(1) | ~some
    if drop is None:
        options = {"is_causal": causal and mask is None}
        mixed = rowwise(lambda *row: F.scaled_dot_product_attention(*row, **options), q, k, v, mask)
    else:
        if mask is None and causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = rowwise(torch.matmul, q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        probabilities = drop(rowwise(lambda one: one.softmax(-1), scores))
        mixed = rowwise(torch.matmul, probabilities, v)
    mixed = mixed if some is None else mixed.masked_fill(~some, 0.0)
    return mixed.transpose(1, 2).flatten(2)
