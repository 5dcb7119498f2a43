"""What a bottleneck adapter reads and what it is added to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hfadapt import Rows, Weights

from ..shared import UpDownDelta
from ..shared.norms import keep_without_adapter
from .config import Bottleneck, LayerNorms

__all__ = ["BehindNormDelta", "BehindSumDelta", "closing_norm"]


def closing_norm(leaf: nn.Module, value: Tensor) -> Tensor:
    """Apply the base's norm ``leaf`` without running hooks, or the deltas at it, again."""
    dtype = next((p.dtype for p in leaf.parameters(recurse=False)), value.dtype)
    as_it_is = dtype == value.dtype or torch.is_autocast_enabled(value.device.type)
    # adapters may be in float32 behind a norm of lower precision
    normed = type(leaf).forward(leaf, value if as_it_is else value.to(dtype))
    # I-BERT's norm returns a scale of its quantised numbers as well
    normed = normed[0] if isinstance(normed, tuple) else normed
    return normed if as_it_is else normed.to(value.dtype)


class BehindNormDelta(UpDownDelta):
    """At the input of the closing norm, whose value is f + a; reads ``LN(f + a)``."""

    def init_weights(self, weights: Weights, config: Bottleneck, shared: nn.Module | None) -> None:
        super().init_weights(weights, config, shared)
        self.fuses_norm = self.fuses_norm and self.site.source is None

    def read(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        return closing_norm(rows.leaf, value)

    def forward(self, value: Tensor, source: Tensor, rows: Rows, **norm: Any) -> Tensor:
        norms: LayerNorms = self.config(rows.names[0]).norms
        read = self.read(value, source, rows)
        if self.site.source is None:
            return self.add_to(value, read, rows, **norm)
        # What is added to u, and what its own norm may cover, is f or LN(f + a), without the residual a.
        kept = value - source if norms.residual_before_ln else read
        return keep_without_adapter(rows, source + self.add_to(kept, read, rows), value)


class BehindSumDelta(UpDownDelta):
    """At the sub-layer's output f, reads it, or f + a with a from ``source`` where no norm closes the sub-layer."""

    def read(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        return value + source if self.site.source is not None else value
