"""Heads that answer per token: their module, and token classification."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import DataError, TaskError
from ...errors.rows import RowPlace
from .base import IGNORE, Head, HeadFeatures, Pooling, fit_labels, masked_mean, wide
from .sequence import check_smoothing, class_index

__all__ = ["TokenClassification", "TokenModule"]


class TokenModule(nn.Module):
    """Dropout and one linear on every token: logits [B, T, C]."""

    def __init__(self, hidden_size: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_outputs)
        nn.init.normal_(self.out_proj.weight, std=0.02)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, features: HeadFeatures) -> Tensor:
        """Return logits [B, T, C]."""
        return self.out_proj(self.dropout(features.hidden.to(self.out_proj.weight.dtype)))


@dataclass(frozen=True)
class TokenClassification(Head):
    """One of C classes a token, cross entropy over the labelled tokens.

    The data hold words and one label a word; the first piece of a word carries its label, the others none.

    Args:
        num_labels: C, at least 2.
        label_smoothing: Share of the target that is spread over all classes, at least 0 and below 1.
    """

    num_labels: int = 2
    label_smoothing: float = field(default=0.0, kw_only=True)

    kind: ClassVar[str] = "token_classification"
    label_place: ClassVar[str] = "token"
    default_metrics: ClassVar[tuple[str, ...]] = ("token_accuracy",)
    allowed_metrics: ClassVar[tuple[str, ...]] = ("token_accuracy", "entity_f1")
    per_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels < 2:
            raise TaskError(
                "too few classes",
                where="TokenClassification",
                got=self.num_labels,
                allowed="2 or more",
                try_="the number of different tags that the data hold",
            )
        check_smoothing(type(self).__name__, self.label_smoothing)

    @property
    def num_outputs(self) -> int:
        """C, for every token."""
        return self.num_labels

    def build(self, hidden_size: int, pooling: Pooling, pair: str) -> TokenModule:
        """See ``Head.build``."""
        return TokenModule(hidden_size, self.num_labels, self.dropout)

    def check_labels(self, values: list[Any], where: str, names: tuple[str, ...] | None = None) -> list[np.ndarray]:
        """One list of classes a row, -100 for words without a label."""
        rows = []
        for row, tags in enumerate(values):
            if not isinstance(tags, (list, tuple, np.ndarray)):
                raise DataError(
                    "token labels need a list, one label a word",
                    where=RowPlace(where, row),
                    got=repr(tags)[:80],
                    allowed="a list of labels, or their names in one text with spaces between",
                    try_="one label a word of the text, in its order",
                )
            rows.append(
                np.array(
                    [
                        IGNORE
                        if not isinstance(tag, str) and tag == IGNORE
                        else class_index(tag, self.num_labels, RowPlace(where, row, f"word {word}"), names)
                        for word, tag in enumerate(tags)
                    ],
                    np.float32,
                )
            )
        return rows

    def loss(self, logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Cross entropy of logits [B, T, C] against labels [B, >= T], mean over labelled tokens."""
        target = fit_labels(labels, logits.shape[1])
        valid = target >= 0
        if keep is not None:
            valid = valid & keep[:, None]
        safe = torch.where(valid, target, torch.zeros_like(target)).long()
        scores = wide(logits).transpose(1, 2)
        losses = F.cross_entropy(scores, safe, reduction="none", label_smoothing=self.label_smoothing)
        return masked_mean(losses, valid, None)

    def decode(self, logits: np.ndarray, labels: np.ndarray | None) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """One array of classes a row, labelled tokens only; without labels every token."""
        tokens = logits.shape[1] // self.num_labels
        predictions = logits[:, : tokens * self.num_labels].reshape(len(logits), tokens, -1).argmax(axis=2)
        if labels is None:
            return list(predictions), None
        width = min(tokens, labels.shape[1])
        kept = [np.flatnonzero(row[:width] >= 0) for row in labels]
        return (
            [row[index] for row, index in zip(predictions, kept, strict=True)],
            [row[index].astype(np.int64) for row, index in zip(labels, kept, strict=True)],
        )
