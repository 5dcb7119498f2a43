"""The head that finds an answer in a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError, TaskError
from ...errors.rows import RowPlace
from .base import Head, Pooling, fit_labels, masked_mean, wide
from .token import TokenModule

__all__ = ["WINDOW", "Span", "Window"]

#: Truth of an example without an answer, and of one whose answer no window shows: nothing that is predicted equals it.
NOTHING, OUT_OF_SIGHT = (-1, -1), (-2, -2)


class Window(NamedTuple):
    """The labels of one window of a context; the first five are positions in the window's sequence.

    Args:
        start: First token of the answer; ``cls`` when the answer is not in this window.
        end: Its last token.
        cls: The token that stands for "no answer".
        first: First token of the context.
        last: Its last token here.
        example: Number of the row that the window was cut from.
        offset: Tokens of the context before this window.
        answered: 1 when the example has an answer, in this window or not.
    """

    start: int
    end: int
    cls: int
    first: int
    last: int
    example: int
    offset: int
    answered: int

    @classmethod
    def of(cls, label: np.ndarray) -> Window:
        """Read a row of labels, which may be padded."""
        return cls(*map(int, label[: len(cls._fields)]))


WINDOW = Window._fields


@dataclass(frozen=True)
class Span(Head):
    """Start and end token of an answer, two cross entropies averaged (as BERT does for SQuAD).

    The data hold a question (``text``), a context (``text_pair``) and an answer given as character offsets in the
    context: ``{"text": [...], "answer_start": [...]}`` as in SQuAD. The first token of the sequence is trained to
    stand for "not here": the truncation cut the answer off, it is in another window, or there is none.

    A context that is longer than the sequence is cut, or with ``doc_stride`` read in overlapping windows, each a row
    of its own in training. In evaluation the best answer over the windows counts, the tokens of the context only.

    Where some questions have no answer (SQuAD 2), say ``version_2_with_negative``: "no answer" then competes with the
    score that it has in the window that likes it least, as in transformers' question-answering example. Without it
    (SQuAD 1) every question gets an answer, and a row without one is an error.

    Args:
        max_answer_tokens: Longest answer that is predicted.
        doc_stride: Tokens that neighbouring windows of a long context share; ``None`` cuts long contexts.
        version_2_with_negative: Questions may have no answer, and "no answer" may be predicted.
        null_score_diff_threshold: "No answer" is predicted when its score is above the best answer's by more than
            this; chosen on the validation split, 0 to start with.
    """

    max_answer_tokens: int = 30
    doc_stride: int | None = None
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0

    kind: ClassVar[str] = "span"
    label_place: ClassVar[str] = "position"
    default_metrics: ClassVar[tuple[str, ...]] = ("exact_match", "span_f1")
    allowed_metrics: ClassVar[tuple[str, ...]] = ("exact_match", "span_f1")
    per_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, lowest in (("max_answer_tokens", 1), ("doc_stride", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise TaskError(
                    f"bad {name}",
                    where="Span",
                    got=value,
                    allowed=f"{lowest} or more",
                    try_=f"{name}={max(lowest, 1)}, or None",
                )
        threshold = self.null_score_diff_threshold
        if not math.isfinite(threshold) or (threshold and not self.version_2_with_negative):
            raise TaskError(
                "bad null_score_diff_threshold",
                where="Span",
                got=threshold,
                allowed="a finite number, and 0 where every question has an answer",
                try_="Span(version_2_with_negative=True, null_score_diff_threshold=...)",
            )

    @property
    def num_outputs(self) -> int:
        """Two for every token: start and end."""
        return 2

    def build(self, hidden_size: int, pooling: Pooling, pair: str) -> TokenModule:
        """See ``Head.build``."""
        return TokenModule(hidden_size, 2, self.dropout)

    def check_labels(self, values: list[Any], where: str, names: tuple[str, ...] | None = None) -> list[np.ndarray]:
        """Returns (first character, length) of the first answer a row; (-1, 0) for no answer."""
        rows = []
        for row, value in enumerate(values):
            if not isinstance(value, dict) or not {"text", "answer_start"} <= set(value):
                raise DataError(
                    "an answer needs 'text' and 'answer_start'",
                    where=RowPlace(where, row),
                    got=repr(value),
                    allowed='{"text": ["..."], "answer_start": [17]}',
                    try_="{'text': [], 'answer_start': []} for a question without an answer",
                )
            texts, starts = (v if isinstance(v, (list, tuple)) else [v] for v in (value["text"], value["answer_start"]))
            if texts and not (isinstance(starts[0], (int, np.integer)) and starts[0] >= 0):
                raise DataError(
                    "an answer begins before its context",
                    where=RowPlace(where, row),
                    got=f"answer_start {starts[0]!r}",
                    allowed="0 or more; no text and no answer_start for a question without an answer",
                    try_="context.find(text), where the text stands word for word",
                )
            if not texts and not self.version_2_with_negative:
                raise DataError(
                    "a question without an answer",
                    where=RowPlace(where, row),
                    got=repr(value),
                    allowed="an answer for every question, as in SQuAD 1",
                    try_="Span(version_2_with_negative=True) for data such as SQuAD 2, or drop these rows",
                )
            rows.append(np.array([starts[0], len(texts[0])] if texts else [-1, 0], np.float32))
        return rows

    def loss(self, logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mean of the cross entropies of start and end over the T tokens of logits [B, T, 2]."""
        target = fit_labels(labels, 2).transpose(0, 1)
        valid = (target >= 0) & (target < logits.shape[1])
        if keep is not None:
            valid = valid & keep[None, :]
        safe = torch.where(valid, target, torch.zeros_like(target)).long()
        scores = wide(logits).permute(2, 0, 1)
        loss = F.cross_entropy(scores.flatten(0, 1), safe.flatten(), reduction="none")
        return masked_mean(loss, valid.flatten(), None)

    def decode(self, logits: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Best (start, end) with ``start <= end < start + max_answer_tokens``, [N, 2].

        With labels there is one answer an example, in tokens of its context, and (-1, -1) for none. Without them
        nothing says where contexts begin: positions count the tokens of the sequence, one answer a row.
        """
        if labels is not None:
            return self._over_windows(logits, labels)
        tokens, total = self._scores(logits)
        best = total.reshape(len(logits), -1).argmax(axis=1)
        return np.stack(np.divmod(best, tokens), axis=1), None

    def _scores(self, logits: np.ndarray) -> tuple[int, np.ndarray]:
        """Return T and the score of every span that is allowed, [N, T, T]."""
        tokens = logits.shape[1] // 2
        scores = logits[:, : tokens * 2].reshape(len(logits), tokens, 2).astype(np.float64)
        total = scores[:, :, None, 0] + scores[:, None, :, 1]
        offset = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
        total[:, (offset < 0) | (offset >= self.max_answer_tokens)] = -np.inf
        return tokens, total

    def _over_windows(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answers: dict[int, tuple[float, tuple[int, int]]] = {}
        nothing: dict[int, float] = {}
        truth: dict[int, tuple[int, int]] = {}
        for row, label in enumerate(labels):
            if label[0] < 0:
                continue
            window = Window.of(label)
            example = window.example
            _, (total,) = self._scores(logits[row : row + 1])
            found = (-math.inf, NOTHING)
            if window.first <= window.last:
                inside = total[window.first : window.last + 1, window.first : window.last + 1]
                start, end = np.divmod(int(inside.argmax()), inside.shape[1])
                found = (float(inside[start, end]), (int(start) + window.offset, int(end) + window.offset))
            answers[example] = max(answers.get(example, found), found)
            null = float(total[window.cls, window.cls])
            nothing[example] = min(nothing.get(example, null), null)
            if window.start >= window.first:
                shift = window.offset - window.first
                truth[example] = (window.start + shift, window.end + shift)
            truth.setdefault(example, OUT_OF_SIGHT if window.answered else NOTHING)
        chosen = [
            NOTHING
            if self.version_2_with_negative and nothing[example] - score > self.null_score_diff_threshold
            else answer
            for example, (score, answer) in answers.items()
        ]
        return np.array(chosen).reshape(-1, 2), np.array(list(truth.values())).reshape(-1, 2)
