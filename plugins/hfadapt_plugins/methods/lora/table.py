"""LoRA of a table of vectors, such as a model's word embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt import Rows, Weights
from hfadapt.errors import AttachError
from hfadapt_kernels import TaskBatch, grouped_lora

from ..shared.rows import change_rows
from .delta import LoRADelta

__all__ = ["TableDelta", "factor_of"]


class TableDelta(LoRADelta):
    """``W[id] + s B A[id]``: a LoRA of the linear that reads ids as unit vectors.

    Weights of an adapter: ``lora_a`` ``[R, V]``, ``lora_b`` ``[D, R]``, V the number of vectors. Where the table
    multiplies what it looks up by a number, the update is multiplied by it too, as it would be in the weight. Like the
    weight's own, the vector of ``padding_idx`` gets no gradient.
    """

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Zero A and normal B, as peft: each step then moves the vectors of the ids that were read."""
        std = 1.0 if config.init == "lora" else 0.02
        start = None if config.init == "lora" else (lambda t: nn.init.normal_(t, std=std))
        weights.lora_a = self.parameter((config.r, self.site.read_width), start)
        weights.lora_b = self.parameter((self.site.changed_width, config.r), lambda t: nn.init.normal_(t, std=std))

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the changed vectors ``[B, T, D]`` of ids ``source`` ``[B, T]``; there is nothing to drop out.

        Raises:
            AttachError: the table was resized.
        """
        each = self.each(rows.names)
        leaf: Any = rows.leaf
        self._require_size(leaf)
        factor = factor_of(leaf)

        def compute(index: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
            one, ids = each[index], pick(source)
            update = _up(torch.nn.functional.embedding(ids, one.lora_a.T), one.lora_b)
            # One factor after the other: their product would be rounded to the dtype of the base's.
            update = _without_padding(update * one.config.scale * factor, ids, leaf.padding_idx)
            return pick(value) + update.to(value.dtype)

        return change_rows(rows.batch, value, compute)

    def merge(self, name: str, leaf: nn.Module) -> None:
        """Add ``s (B A)^T`` to the weight of ``leaf``.

        Raises:
            AttachError: as of a linear; or the table was resized.
        """
        self._require_size(leaf)
        super().merge(name, leaf)

    def _require_size(self, leaf: Any) -> None:
        if leaf.num_embeddings != self.site.read_width:
            raise AttachError(
                "a table with a LoRA has another number of vectors than when it was attached",
                where=self.site.leaf,
                got=f"{leaf.num_embeddings} vectors",
                allowed=f"{self.site.read_width}, of which A has a column each",
                try_="resize_token_embeddings before attach; or hfadapt.detach, and attach on the resized model",
            )

    def cannot_fuse(self, name: str) -> str:
        return "it changes a table, and reads no states"

    def cannot_route(self, name: str) -> str:
        return "it changes a table, and reads no states"


def _up(inner: Tensor, b: Tensor) -> Tensor:
    """``inner B^T``: by the op, whose sums are those of one place, whether ids have the batch or time first."""
    if not inner.shape[0]:
        return torch.nn.functional.linear(inner, b)
    same = torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
    return grouped_lora(inner, [same], [b], 1.0, TaskBatch.single(inner.shape[0], inner.device))


def factor_of(leaf: Any) -> Any:
    """Return what a table multiplies the vectors by that it looks up, rounded as there; 1 of a plain one."""
    if type(leaf).forward is nn.Embedding.forward:
        return 1.0
    factor = leaf.embed_scale
    return factor.to(leaf.weight.dtype) if isinstance(factor, Tensor) else factor


def _without_padding(update: Tensor, ids: Tensor, padding: int | None) -> Tensor:
    """``update``, of which the places of padding hand on no gradient, neither to A nor to B."""
    if padding is None or not update.requires_grad:
        return update
    return torch.where((ids == padding).unsqueeze(-1), update.detach(), update)
