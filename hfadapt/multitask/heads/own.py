"""The head that the base model already has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError, TaskError, did_you_mean
from ...errors.rows import RowPlace
from .base import IGNORE, Head, Pooling, wide

__all__ = ["OwnHead"]

LabelKind = Literal["auto", "classes", "numbers", "tokens", "text", "continuation"]


@dataclass(frozen=True)
class OwnHead(Head):
    """Use the head and the loss of the base, an ``AutoModelFor...`` of transformers; every task must use it.

    Args:
        labels: What the base's loss expects: ``classes`` (long [B]), ``numbers`` (float [B]), ``tokens`` (long [B, T]);
            ``auto`` reads it off the base's class name and ``config.num_labels``. With ``text`` the label column holds
            what an encoder-decoder is to write, with ``continuation`` what a causal model is to write after the text.
    """

    labels: LabelKind = "auto"

    kind: ClassVar[str] = "own"
    default_metrics: ClassVar[tuple[str, ...]] = ()
    allowed_metrics: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "f1",
        "matthews",
        "pearson",
        "spearman",
        "mse",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in get_args(LabelKind):
            allowed = get_args(LabelKind)
            raise TaskError(
                "unknown kind of labels",
                where="OwnHead",
                got=repr(self.labels),
                allowed=", ".join(allowed),
                try_=did_you_mean(str(self.labels), allowed),
            )

    @property
    def label_place(self) -> str:  # type: ignore[override]
        """Labels of tokens and continuations are tied to tokens."""
        return "token" if self.labels in ("tokens", "continuation") else "row"

    @property
    def writes_text(self) -> bool:
        """Whether the label column holds text."""
        return self.labels in ("text", "continuation")

    @property
    def num_outputs(self) -> int:
        """Unknown here: the base decides."""
        return 1

    def build(self, hidden_size: int, pooling: Pooling, pair: str) -> None:
        """There is nothing to build."""
        return None

    def resolve(self, base_class: str, num_labels: int) -> OwnHead:
        """Return this head with ``labels`` settled for a base of the given class.

        Raises:
            TaskError: the class has no head that is known here.
        """
        if self.labels != "auto":
            return self
        if base_class.endswith("ForSequenceClassification"):
            kind: LabelKind = "numbers" if num_labels == 1 else "classes"
        elif base_class.endswith(
            ("ForTokenClassification", "ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
        ):
            kind = "tokens"
        elif base_class.endswith(("ForImageClassification", "ForAudioClassification")):
            kind = "classes"
        else:
            raise TaskError(
                "OwnHead needs a base with a head of its own",
                where="OwnHead",
                got=base_class,
                allowed="...ForSequenceClassification, ...ForTokenClassification, ...ForMaskedLM, ...ForCausalLM, "
                "...ForConditionalGeneration",
                try_="pass such a model as the base, or give the task a head such as Classification(2)",
            )
        return OwnHead(labels=kind, pooling=self.pooling, dropout=self.dropout)

    def native_labels(self, labels: Tensor) -> Tensor:
        """Return float32 labels [B, width] in the shape and dtype that the base's loss expects."""
        if self.labels == "numbers":
            return labels[:, 0].float() if labels.dim() > 1 else labels.float()
        if self.labels == "classes":
            return (labels[:, 0] if labels.dim() > 1 else labels).long()
        return labels.long()

    def check_labels(self, values: list[Any], where: str, names: tuple[str, ...] | None = None) -> list[np.ndarray]:
        """Accepts numbers or lists of numbers; names are looked up; the base checks the range."""
        rows = []
        for row, value in enumerate(values):
            items = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
            items = [names.index(v) if isinstance(v, str) and names and v in names else v for v in items]
            try:
                array = np.array(items, np.float32)
            except (TypeError, ValueError):
                array = np.array([np.nan], np.float32)
            if np.isnan(array).any():
                raise DataError(
                    "label is not a number",
                    where=RowPlace(where, row),
                    got=repr(value),
                    allowed="numbers, or label names of the task",
                    try_="Task(..., label_names=(...)) with every name that the data use"
                    if isinstance(value, str)
                    else "a number there, or drop the row",
                )
            rows.append(array)
        return rows

    def loss(self, logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Never called: the base computes its own loss."""
        raise TaskError(
            "the base computes the loss of OwnHead",
            where="OwnHead.loss",
            got="a call of it",
            allowed="the loss in the model's output",
            try_="call the model with labels",
        )

    def weighted_loss(self, logits: Tensor, labels: Tensor, weights: Tensor, shifted: bool) -> Tensor:
        """The base's loss with a weight a row: ``sum_i w_i l_i / n`` over the n labelled items.

        With all weights 1 it is the loss that transformers' heads compute.

        Args:
            logits: [B, C], or [B, T, C] for heads that answer per token.
            labels: What ``native_labels`` returned.
            weights: [B].
            shifted: Token t is predicted from token t - 1 (causal language models).
        """
        if self.labels == "numbers":
            losses = F.mse_loss(wide(logits).reshape(labels.shape), labels.to(wide(logits)), reduction="none")
            return (losses * weights.view(-1, *(1,) * (losses.dim() - 1))).mean()
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(wide(logits).flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORE)
        each = weights.repeat_interleave(labels.numel() // weights.shape[0])
        return (losses * each).sum() / (labels != IGNORE).sum().clamp_min(1)

    def decode(self, logits: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Numbers for one logit a row, class indices otherwise."""
        if self.labels == "numbers":
            predictions: np.ndarray = logits[:, 0].astype(np.float64)
        else:
            predictions = logits.argmax(axis=1)
        if labels is None:
            return predictions, None
        column = labels.reshape(len(labels), -1)[:, 0]
        valid = column != IGNORE
        references = column[valid] if self.labels == "numbers" else column[valid].astype(np.int64)
        return predictions[valid], references


def flatten_logits(logits: Tensor) -> Tensor:
    """Return logits [B, C], [B, T, C] or [B] as [B, W], token-major."""
    return logits[:, None] if logits.dim() == 1 else torch.flatten(logits, 1)
