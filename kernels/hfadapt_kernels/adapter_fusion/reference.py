"""AdapterFusion as written in the paper: the formula to read and the float64 truth of the tests.

It forms the adapters' outputs ``u_n`` one [B, T, D] each, which the other implementations never do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..dropout import keep_scale

__all__ = ["adapter_fusion_reference"]


def adapter_fusion_reference(
    query: Tensor,
    hidden: Sequence[Tensor],
    up: Sequence[Tensor],
    up_bias: Sequence[Tensor] | None,
    scale: Sequence[float | Tensor],
    query_weight: Tensor,
    query_bias: Tensor | None,
    key_weight: Tensor,
    key_bias: Tensor | None,
    value_weight: Tensor,
    temperature: float = 1.0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``sum_n p_n V u_n`` with ``p = softmax_n(drop((Q x + b_q) . (K u_n + b_k)) / temperature)``.

    ``u_n = s_n (U_n z_n + b_n)`` is the output of adapter n before the residual. Scores are not divided by
    ``sqrt(D)`` (Pfeiffer et al. 2021, arXiv:2005.00247, eq. 2 to 5).

    Args:
        query: x, [B, T, D].
        hidden: z_n, one [B, T, R_n] an adapter.
        up: U_n, one [D, R_n] an adapter.
        up_bias: b_n, one [D] an adapter, or ``None``.
        scale: s_n, one an adapter.
        query_weight: Q, [D, D].
        query_bias: b_q, [D].
        key_weight: K, [D, D].
        key_bias: b_k, [D].
        value_weight: V, [D, D].
        temperature: Divides the scores.
        dropout: Probability of dropping a score.
        seed: int64 [1], or ``None`` for no dropout.

    Returns:
        The mixture [B, T, D] and the weights p, [B, T, N], float32 or wider.
    """
    biases = up_bias if up_bias is not None else [None] * len(up)
    u = torch.stack([s * linear(z, w, b) for z, w, b, s in zip(hidden, up, biases, scale, strict=True)], dim=-2)
    scores = (linear(query, query_weight, query_bias).unsqueeze(-2) * linear(u, key_weight, key_bias)).sum(-1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    tokens, count = scores.shape[:-1].numel(), len(up)
    line = torch.arange(tokens, device=query.device).view(*scores.shape[:-1], 1)
    keep = keep_scale(seed, line, torch.arange(count, device=query.device), dropout, scores.dtype)
    scores = scores if keep is None else scores * keep
    weights = torch.softmax(scores / temperature, dim=-1)
    return (weights.to(u.dtype).unsqueeze(-1) * linear(u, value_weight)).sum(-2), weights
