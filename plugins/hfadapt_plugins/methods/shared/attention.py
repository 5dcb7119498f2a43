"""Multi-head attention of a delta of its own, written in torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    seen: Tensor | None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention ``[B, T, S]``; a token that may see nothing gets zeros.

    Args:
        query: ``[B, T, S]``.
        key: ``[B, K, S]``.
        value: ``[B, K, S]``.
        num_heads: A divisor of S.
        seen: Bool ``[B, T, K]`` or ``[B, 1, K]``, True where a token may attend; None for everywhere.
        causal: With ``seen`` None: a token sees only those before it, and itself.
        dropout: Of the probabilities.
    """
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    if seen is None:
        mixed = F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=causal)
    else:
        some = seen.any(-1, keepdim=True).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(q, k, v, seen.unsqueeze(1) | ~some, dropout).masked_fill(~some, 0.0)
    return mixed.transpose(1, 2).flatten(2)
