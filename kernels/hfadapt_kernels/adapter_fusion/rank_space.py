"""AdapterFusion in the bottleneck's space: exact, and nothing of size N x [B, T, D] is ever formed.

With ``U = [U_1 .. U_N | b_1 .. b_N]`` ([D, M], M = sum R_n + N) and ``z = [z_1 .. z_N | 1 .. 1]`` per token, the
scores and the mixture are sums over the columns m that belong to adapter n::

    score_n = sum_m z_m * ((Q x + b_q)^T K U)_m   (+ (Q x + b_q) . b_k, the same for every n)
    out     = V U (p z)                           with p_n repeated over n's columns

The products of weights ``Q^T K U`` and ``V U`` are [D, M], formed once a call, and replace two products of [D, D] per
token and adapter. With fewer tokens than columns the same chain is cheaper from the token's side: ``((Q x)^T K) U``
and ``V (U (p z))``. The key bias moves all scores of a token alike and leaves the softmax unchanged, except where
dropout removes single scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..dropout import keep_scale

__all__ = [
    "CoreInputs",
    "WeightProducts",
    "form_on_weights",
    "fusion_core_reference",
    "join_up_projections",
    "mix",
    "score_products",
    "weight_products",
]


def join_up_projections(
    up: Sequence[Tensor], up_bias: Sequence[Tensor] | None, scale: Sequence[float | Tensor]
) -> Tensor:
    """``[s_1 U_1 .. s_N U_N | s_1 b_1 .. s_N b_N]``, [D, M]."""

    def scaled(weight: Tensor, factor: float | Tensor) -> Tensor:
        if isinstance(factor, Tensor):
            return weight * factor.to(weight.dtype).reshape(-1, *(1,) * (weight.dim() - 1))
        return weight if factor == 1.0 else weight * factor

    columns = [scaled(weight, factor) for weight, factor in zip(up, scale, strict=True)]
    if up_bias is not None:
        columns += [scaled(bias, factor).unsqueeze(1) for bias, factor in zip(up_bias, scale, strict=True)]
    return torch.cat(columns, dim=1)


def form_on_weights(tokens: int, columns: int) -> bool:
    """Whether three [D, D] products with the weights' columns cost less than three with the tokens."""
    return tokens > columns


class WeightProducts(NamedTuple):
    """What is formed of weights alone where there are more tokens than columns.

    Attributes:
        scores: ``(K U)^T Q``, [M, D].
        shift: ``b_q^T K U``, [M]; None without b_q.
        values: ``V U``, [D, M].
    """

    scores: Tensor
    shift: Tensor | None
    values: Tensor


def weight_products(
    up: Tensor, query_weight: Tensor, query_bias: Tensor | None, key_weight: Tensor, value_weight: Tensor
) -> WeightProducts:
    """Form them; `score_products` and `mix` do so in every call."""
    keys = key_weight @ up
    shift = None if query_bias is None else query_bias @ keys
    return WeightProducts(keys.t() @ query_weight, shift, value_weight @ up)


def score_products(
    x: Tensor, up: Tensor, query_weight: Tensor, query_bias: Tensor | None, key_weight: Tensor
) -> Tensor:
    """``(Q x + b_q)^T K U``, [tokens, M]."""
    if not form_on_weights(x.shape[0], up.shape[1]):
        return linear(x, query_weight, query_bias) @ key_weight @ up
    keys = key_weight @ up
    return linear(x, keys.t() @ query_weight, None if query_bias is None else query_bias @ keys)


def mix(weighted: Tensor, up: Tensor, value_weight: Tensor) -> Tensor:
    """``V U (p z)``, [tokens, D]."""
    if form_on_weights(*weighted.shape):
        return linear(weighted, value_weight @ up)
    return linear(linear(weighted, up), value_weight)


class CoreInputs(NamedTuple):
    """What the part between the matrix products reads; the arguments of the opaque op, in its order.

    Attributes:
        products: [tokens, M], from `score_products`.
        hidden: z_n, one [tokens, R_n] an adapter; M is their sum, plus N where the up projections have biases.
        shift: Added to every score of a token, [tokens]; ``None`` for 0.
        temperature: Divides the scores.
        dropout: Probability of dropping a score.
        seed: int64 [1], or ``None`` for no dropout.
    """

    products: Tensor
    hidden: list[Tensor]
    shift: Tensor | None
    temperature: float
    dropout: float
    seed: Tensor | None

    def contiguous(self) -> CoreInputs:
        """The same with contiguous tensors, as the fused kernels want them."""
        shift = None if self.shift is None else self.shift.contiguous()
        hidden = [z.contiguous() for z in self.hidden]
        return self._replace(products=self.products.contiguous(), hidden=hidden, shift=shift)


def fusion_core_reference(core: CoreInputs) -> tuple[Tensor, Tensor]:
    """Scores from ``products``, their softmax, and ``p z``: the part between the matrix products.

    Returns:
        ``p z`` [tokens, M] in the dtype of ``products``, and p [tokens, N], float32 or wider.
    """
    products, hidden, shift, temperature, dropout, seed = core
    wide = torch.promote_types(products.dtype, torch.float32)
    count, sizes = len(hidden), [z.shape[1] for z in hidden]
    parts = products.to(wide).split([*sizes, products.shape[1] - sum(sizes)], dim=1)
    scores = torch.stack([(y * z).sum(-1) for y, z in zip(parts[:-1], hidden, strict=True)], dim=1)
    biased = parts[-1].shape[1] == count
    if biased:
        scores = scores + parts[-1]
    if shift is not None:
        scores = scores + shift.to(wide).unsqueeze(1)
    tokens = torch.arange(products.shape[0], device=products.device).unsqueeze(1)
    keep = keep_scale(seed, tokens, torch.arange(count, device=products.device), dropout, wide)
    weights = torch.softmax((scores if keep is None else scores * keep) / temperature, dim=1)
    weighted = [weights[:, n : n + 1] * z for n, z in enumerate(hidden)] + ([weights] if biased else [])
    return torch.cat(weighted, dim=1).to(products.dtype), weights
