"""A parallel adapter with projections of its own for every head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt import Weights

from ..shared import UpDownDelta
from ..shared.initial import init_pair

__all__ = ["ByHeadDelta"]


class ByHeadDelta(UpDownDelta):
    """``head_i + s (U_i act(D_i x + b_i) + b'_i)``: what head i adds depends on x through its own bottleneck.

    Weights of an adapter: ``down`` ``[H R, D]`` (head by head), ``up`` ``[H, K, R]``, biases ``[H R]`` and ``[H K]``.
    """

    keeps_up_apart = True

    @property
    def heads(self) -> int:
        """H, the query heads."""
        return self.site.query_heads

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        super().init_weights(weights, config, shared)
        down = torch.empty(self.heads * config.r, self.site.read_width)
        up = torch.empty(self.heads, self.site.width // self.heads, config.r)
        init_pair(down, up, config.init)
        weights.down, weights.up = nn.Parameter(down), nn.Parameter(up)
        if config.bias:
            weights.down_bias = nn.Parameter(torch.zeros(self.heads * config.r))

    def weights(self, attribute: str, names: Sequence[str]) -> list[Tensor]:
        """As the kernel takes them: the second projections of all heads as one block-diagonal matrix."""
        found = super().weights(attribute, names)
        return [torch.block_diag(*up.unbind(0)) for up in found] if attribute == "up" else found
