"""Heads that give one answer a text: classification, multi-label, regression."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError, TaskError, did_you_mean
from ...errors.limits import require_number
from ...errors.rows import RowPlace
from .base import IGNORE, Head, Pooling, fit_labels, masked_mean, wide
from .label_sets import read_label_sets
from .pooling import SequenceModule

__all__ = ["Classification", "MultiLabel", "Regression", "SequenceHead", "check_smoothing", "class_index"]


def check_smoothing(where: str, value: float) -> None:
    """Raise ``TaskError`` unless a head's ``label_smoothing`` lies in [0, 1)."""
    if not 0 <= value < 1:
        raise TaskError(
            "bad label_smoothing", where=where, got=repr(value), allowed="0 <= label_smoothing < 1", try_="0.1"
        )


def class_index(value: Any, count: int, where: str, names: tuple[str, ...] | None) -> int:
    """Return a class label as an index in ``[0, count)``.

    Raises:
        DataError: missing, NaN, not a whole number, out of range, or a string that is no label name.
    """
    if isinstance(value, str) and value:
        if names and value in names:
            return names.index(value)
        raise DataError(
            "label is a string that is not one of the label names",
            where=where,
            got=repr(value),
            allowed=", ".join(map(repr, names)) if names else "whole numbers (the task has no label_names)",
            try_=did_you_mean(value, names or ()) or "Task(..., label_names=(...)) in the order of the classes",
        )
    try:
        number = math.nan if value is None or value == "" else float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            "label is no number and no name",
            where=where,
            got=repr(value)[:80],
            allowed=f"whole numbers 0..{count - 1}",
            try_="one label a row; several labels a row are hfadapt.MultiLabel's",
        ) from None
    missing = math.isnan(number)
    if not math.isfinite(number) or number != int(number) or not 0 <= number < count:
        raise DataError(
            "label is missing" if missing else "label is outside the head's classes",
            where=where,
            got=repr(value),
            allowed=", ".join(map(repr, names)) if names and missing else f"whole numbers 0..{count - 1}",
            try_="drop rows without a label" if missing else "give the head the right number of classes",
        )
    return int(number)


@dataclass(frozen=True)
class SequenceHead(Head):
    """Shared part of the heads that read one pooled vector a text.

    Args:
        inner_size: Width of an extra ``Linear + tanh`` layer before the last linear; ``None`` for none.
    """

    inner_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(
            "inner_size",
            self.inner_size,
            where=type(self).__name__,
            whole=True,
            optional=True,
            least=1,
            error=TaskError,
        )

    def build(self, hidden_size: int, pooling: Pooling, pair: str) -> SequenceModule:
        """See ``Head.build``."""
        return SequenceModule(hidden_size, self.num_outputs, pooling, pair, self.dropout, self.inner_size)


@dataclass(frozen=True)
class Classification(SequenceHead):
    """One of C classes, cross entropy.

    Args:
        num_labels: C, at least 2.
        label_smoothing: Share of the target that is spread over all classes, at least 0 and below 1.
    """

    num_labels: int = 2
    label_smoothing: float = field(default=0.0, kw_only=True)

    kind: ClassVar[str] = "classification"
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    allowed_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "matthews")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels < 2:
            raise TaskError(
                "too few classes",
                where="Classification",
                got=self.num_labels,
                allowed="2 or more",
                try_="Regression() for one number",
            )
        check_smoothing(type(self).__name__, self.label_smoothing)

    @property
    def num_outputs(self) -> int:
        """C."""
        return self.num_labels

    def check_labels(self, values: list[Any], where: str, names: tuple[str, ...] | None = None) -> list[np.ndarray]:
        """See ``Head.check_labels``."""
        return [
            np.array([class_index(value, self.num_labels, RowPlace(where, row), names)], np.float32)
            for row, value in enumerate(values)
        ]

    def loss(self, logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Cross entropy of logits [B, C] against column 0 of ``labels``."""
        target = labels[:, 0]
        valid = target >= 0
        if keep is not None:
            valid = valid & keep
        # rows of other tasks hold other labels: give them class 0, their loss is masked out
        safe = torch.where(valid, target, torch.zeros_like(target)).long()
        losses = F.cross_entropy(wide(logits), safe, reduction="none", label_smoothing=self.label_smoothing)
        return masked_mean(losses, valid, None)

    def decode(self, logits: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Class indices of the labelled rows."""
        predictions = logits[:, : self.num_labels].argmax(axis=1)
        if labels is None:
            return predictions, None
        valid = labels[:, 0] != IGNORE
        return predictions[valid], labels[valid, 0].astype(np.int64)


def _label_of(value: Any, where: str, *, count: int, names: tuple[str, ...] | None) -> int:
    return class_index(value, count, where, names)


@dataclass(frozen=True)
class MultiLabel(SequenceHead):
    """Any subset of C labels, binary cross entropy each; predicted where the logit is positive.

    Args:
        num_labels: C, at least 1.
    """

    num_labels: int = 2

    kind: ClassVar[str] = "multi_label"
    default_metrics: ClassVar[tuple[str, ...]] = ("f1",)
    allowed_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels < 1:
            raise TaskError(
                "too few labels",
                where="MultiLabel",
                got=self.num_labels,
                allowed="1 or more",
                try_="the number of different labels that the data hold",
            )

    @property
    def num_outputs(self) -> int:
        """C."""
        return self.num_labels

    def check_labels(self, values: list[Any], where: str, names: tuple[str, ...] | None = None) -> list[np.ndarray]:
        """Accepts C zeros and ones a row, or the list of the labels that hold (indices or names).

        With C at most 2 the integers 0 and 1 are refused where they read both ways; see ``read_label_sets``.
        """
        index = functools.partial(_label_of, count=self.num_labels, names=names)
        return read_label_sets(values, self.num_labels, functools.partial(RowPlace, where), index, names)

    def loss(self, logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Binary cross entropy of logits [B, C], mean over rows and labels."""
        target = fit_labels(labels, self.num_labels)
        valid = target >= 0
        safe = torch.where(valid, target, torch.zeros_like(target)).clamp(max=1.0)
        scores = wide(logits)
        loss = F.binary_cross_entropy_with_logits(scores, safe.to(scores), reduction="none")
        return masked_mean(loss, valid, keep)

    def decode(self, logits: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """0/1 matrices [N, C]."""
        predictions = (logits[:, : self.num_labels] > 0).astype(np.int64)
        if labels is None:
            return predictions, None
        valid = labels[:, 0] != IGNORE
        return predictions[valid], labels[valid, : self.num_labels].astype(np.int64)


@dataclass(frozen=True)
class Regression(SequenceHead):
    """One number, squared error.

    With bounds the error is measured in units of ``high - low`` and predictions are clamped to the bounds, as PALs do
    for STS-B (target / 5, prediction clamped to [0, 1]); logits stay in the label's own unit.

    Args:
        low: Smallest label, or ``None``.
        high: Largest label, or ``None``; both or neither.
    """

    low: float | None = None
    high: float | None = None

    kind: ClassVar[str] = "regression"
    default_metrics: ClassVar[tuple[str, ...]] = ("pearson",)
    allowed_metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "mse")

    def __post_init__(self) -> None:
        super().__post_init__()
        half = (self.low is None) != (self.high is None)
        if half or (self.low is not None and self.high is not None and not self.low < self.high):
            raise TaskError(
                "bad bounds",
                where="Regression",
                got=f"low={self.low}, high={self.high}",
                allowed="both absent, or low < high",
                try_="Regression(low=0.0, high=5.0)",
            )

    @property
    def num_outputs(self) -> int:
        """1."""
        return 1

    @property
    def _span(self) -> float:
        return 1.0 if self.low is None or self.high is None else self.high - self.low

    def build(self, hidden_size: int, pooling: Pooling, pair: str) -> SequenceModule:
        """See ``Head.build``; a bounded head's linear answers in units of the bounds."""
        module = super().build(hidden_size, pooling, pair)
        if self.low is not None:
            module.register_forward_hook(_ToLabelUnits(self.low, self._span))
        return module

    def check_labels(self, values: list[Any], where: str, names: tuple[str, ...] | None = None) -> list[np.ndarray]:
        """Accepts finite numbers, within the bounds if there are any."""
        rows = []
        for row, value in enumerate(values):
            finite = isinstance(value, (int, float, np.number)) and math.isfinite(value)
            inside = finite and (self.low is None or self.high is None or self.low <= value <= self.high)
            if not inside:
                raise DataError(
                    "label is not a finite number" if not finite else "label is outside the head's bounds",
                    where=RowPlace(where, row),
                    got=repr(value),
                    allowed="finite numbers" if self.low is None else f"numbers in [{self.low}, {self.high}]",
                    try_="drop rows without a label" if not finite else "Regression(low=..., high=...)",
                )
            rows.append(np.array([value], np.float32))
        return rows

    def loss(self, logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Squared error of logits [B, 1] against column 0, both divided by ``high - low``."""
        scores = wide(logits[:, 0])
        target = labels[:, 0].to(scores.dtype)
        valid = ~target.isnan()
        safe = torch.where(valid, target, torch.zeros_like(target))
        return masked_mean(((scores - safe) / self._span) ** 2, valid, keep)

    def decode(self, logits: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Predicted and true numbers."""
        predictions = logits[:, 0].astype(np.float64)
        if self.low is not None:
            predictions = predictions.clip(self.low, self.high)
        if labels is None:
            return predictions, None
        valid = ~np.isnan(labels[:, 0])
        return predictions[valid], labels[valid, 0].astype(np.float64)


class _ToLabelUnits:
    """Forward hook (an object, so that the head can be copied and pickled): ``low + span * output``."""

    def __init__(self, low: float, span: float) -> None:
        self.low = low
        self.span = span

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.low + self.span * output
