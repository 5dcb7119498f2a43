"""From the tokens of a text to one vector, and from two texts to the features of a pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import TaskError
from .base import HeadFeatures, Pooling

__all__ = ["SequenceModule", "pair_features", "pool"]


def pool(hidden: Tensor, mask: Tensor | None, pooler: Tensor | None, pooling: Pooling) -> Tensor:
    """Return [B, D] from [B, T, D].

    ``last`` is the last real token of each row, wherever the padding stands.

    Raises:
        TaskError: ``pooling="pooler"`` on a base without a pooler.
    """
    if pooling == "pooler":
        if pooler is None:
            raise TaskError(
                "the head asks for pooling='pooler', but this base returns no pooled output",
                where="head",
                got="no pooler_output",
                allowed="cls, mean, last",
                try_="pooling='cls' or pooling='mean'",
            )
        return pooler
    if mask is None:
        return {"cls": hidden[:, 0], "last": hidden[:, -1]}[pooling] if pooling != "mean" else hidden.mean(dim=1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    if pooling == "mean":
        weights = mask.to(hidden.dtype)
        # a row without any real token must not divide by zero
        return torch.einsum("btd,bt->bd", hidden, weights) / weights.sum(dim=1, keepdim=True).clamp(min=1)
    if pooling == "cls":
        # the first real token: left-padded rows do not start at position 0
        index = torch.where(mask.bool(), positions, hidden.shape[1] - 1).amin(dim=1)
    else:
        index = torch.where(mask.bool(), positions, 0).amax(dim=1)
    return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)


def pair_features(u: Tensor, v: Tensor) -> Tensor:
    """Return ``[u, v, |u - v|, u * v]``, [B, 4 D], of two texts encoded alone (Conneau et al. 2017, InferSent)."""
    return torch.cat((u, v, (u - v).abs(), u * v), dim=-1)


class SequenceModule(nn.Module):
    """Pooling, optional tanh layer, dropout and one linear: logits [B, C] of a text or of a pair.

    Args:
        hidden_size: D of the base.
        num_outputs: C.
        pooling: Never ``auto``.
        pair: ``joint`` or ``separate``.
        dropout: Probability before each linear.
        inner_size: Width of an extra ``Linear + tanh`` layer; ``None`` for none.
    """

    def __init__(
        self, hidden_size: int, num_outputs: int, pooling: Pooling, pair: str, dropout: float, inner_size: int | None
    ) -> None:
        super().__init__()
        self.pooling: Pooling = pooling
        self.pair = pair
        width = hidden_size * (4 if pair == "separate" else 1)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(width, inner_size) if inner_size else None
        self.out_proj = nn.Linear(inner_size or width, num_outputs)
        for linear in filter(None, (self.dense, self.out_proj)):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, features: HeadFeatures) -> Tensor:
        """Return logits [B, C]."""
        pooled = features.once(("pooled", self.pooling), self._pooled)
        if self.pair == "separate":
            # a task declared separate still takes single texts: the text is then its own partner
            single = features.pair_hidden is None
            other = pooled if single else features.once(("other", self.pooling), self._other)
            pooled = pair_features(pooled, other)
        pooled = self.dropout(pooled.to(self.out_proj.weight.dtype))
        if self.dense is not None:
            pooled = self.dropout(torch.tanh(self.dense(pooled)))
        return self.out_proj(pooled)

    def _pooled(self, features: HeadFeatures) -> Tensor:
        return pool(features.hidden, features.mask, features.pooler, self.pooling)

    def _other(self, features: HeadFeatures) -> Tensor:
        assert features.pair_hidden is not None
        return pool(features.pair_hidden, features.pair_mask, features.pair_pooler, self.pooling)
