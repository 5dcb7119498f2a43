"""LoRA of a table of vectors, such as a model's word embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt import Rows, Weights

from ..shared.rows import change_rows
from .delta import LoRADelta

__all__ = ["TableDelta"]


class TableDelta(LoRADelta):
    """``W[id] + s B A[id]``: a LoRA of the linear that reads ids as unit vectors.

    Weights of an adapter: ``lora_a`` ``[R, V]``, ``lora_b`` ``[D, R]``, V the number of vectors.
    """

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Zero A and normal B, as peft: each step then moves the vectors of the ids that were read."""
        std = 1.0 if config.init == "lora" else 0.02
        start = None if config.init == "lora" else (lambda t: nn.init.normal_(t, std=std))
        weights.lora_a = self.parameter((config.r, self.site.read_width), start)
        weights.lora_b = self.parameter((self.site.changed_width, config.r), lambda t: nn.init.normal_(t, std=std))

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the changed vectors ``[B, T, D]`` of ids ``source`` ``[B, T]``; there is nothing to drop out."""
        each = self.each(rows.names)
        factor = getattr(rows.leaf, "embed_scale", 1.0)

        def compute(index: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
            one = each[index]
            inner = torch.nn.functional.embedding(pick(source), one.lora_a.T)
            update = torch.nn.functional.linear(inner, one.lora_b) * (one.config.scale * factor)
            return pick(value) + update.to(value.dtype)

        return change_rows(rows.batch, value, compute)

    def cannot_fuse(self, name: str) -> str:
        return "it changes a table, and reads no states"

    def cannot_route(self, name: str) -> str:
        return "it changes a table, and reads no states"
