"""The two deltas that the other methods do not have: a bottleneck on a linear, and a prefix with a factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hfadapt import Rows, Weights

from ..prefix import PrefixConfig, PrefixDelta
from ..shared import UpDownDelta

if TYPE_CHECKING:
    from .config import Design

__all__ = ["LinearDelta", "ScaledPrefixDelta"]


class LinearDelta(UpDownDelta):
    """``y + s act(x W_down) W_up`` on a linear's output, or on the slice of it that ``site.part`` names."""

    def forward(self, value: Tensor, source: Tensor, rows: Rows, **norm: Any) -> Tensor:
        if self.site.part is None:
            return super().forward(value, source, rows, **norm)
        blocks, start, stop = self.site.part
        whole = value.unflatten(-1, (blocks, -1))
        own = whole[..., start:stop].flatten(-2)
        changed = super().forward(own, source if self.site.reads_leaf_input else own, rows)
        return whole.slice_scatter(changed.unflatten(-1, (blocks, -1)), -1, start, stop).flatten(-2)

    def cannot_fuse(self, name: str) -> str:
        return "it changes a slice of a fused linear" if self.site.part is not None else super().cannot_fuse(name)


class ScaledPrefixDelta(PrefixDelta):
    """``h + s softmax(q P_k^T) P_v``, and the other forms of a prefix; s is a factor of P_v."""

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        super().init_weights(weights, config.prefix(), shared)
        if config.init == "identity":
            nn.init.zeros_(weights.prefix_value)
        if config.scale == "learned":
            weights.scale = self.parameter((1,), nn.init.ones_)

    def config(self, name: str) -> PrefixConfig:
        return self.design(name).prefix()

    def design(self, name: str) -> Design:
        """Return the config of the adapter ``name`` as it was written."""
        return super().config(name)

    def prefixes(self, name: str, prepared: dict[Any, Any]) -> tuple[Tensor, Tensor]:
        keys, values = super().prefixes(name, prepared)
        scale = self.design(name).scale
        if scale == 1.0:
            return keys, values
        # a prefix has no scale by channel: the config refuses it
        return keys, values * (self.own(name).scale if isinstance(scale, str) else scale)
