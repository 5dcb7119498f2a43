"""From the columns of a data set to checked texts and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, did_you_mean
from ..multitask.heads import IGNORE, Classification, OwnHead, Regression, Span, TokenClassification
from .arrays import Arrays, find_arrays

if TYPE_CHECKING:
    import datasets

    from ..multitask.task import Task

__all__ = ["Columns", "read_columns"]


@dataclass(frozen=True)
class Columns:
    """The checked columns of one split of one task.

    Args:
        where: ``task 'x', train``, for messages.
        texts: A string a row, or a list of words a row.
        pairs: The second texts, or ``None``.
        labels: One float32 vector a row; ``None`` for a split without labels.
        targets: The text to write a row, for heads that write; such columns have no ``labels``.
        arrays: What an image or audio processor returned, in place of texts.
    """

    where: str
    texts: list[Any]
    pairs: list[str] | None
    labels: list[np.ndarray] | None
    targets: list[str] | None = None
    arrays: Arrays | None = None

    def __len__(self) -> int:
        return len(self.texts) if self.arrays is None else len(self.arrays)


def _column(task: Task, data: datasets.Dataset, role: str, where: str) -> list[Any]:
    name = task.column(role)
    if name not in data.column_names:
        raise DataError(
            f"no column {name!r} for {role!r}",
            where=where,
            got=f"columns {', '.join(data.column_names)}",
            try_=did_you_mean(name, data.column_names) or f"Task(..., columns={{{role!r}: '...'}})",
        )
    return list(data[name])


def _check_texts(values: list[Any], column: str, where: str, words: bool) -> None:
    for row, value in enumerate(values):
        good = (
            isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)
            if words
            else isinstance(value, str)
        )
        if not good:
            raise DataError(
                f"column {column!r} does not hold {'lists of words' if words else 'text'}",
                where=f"{where}, row {row}",
                got=repr(value)[:80],
                allowed="a list of strings" if words else "a string",
                try_="drop rows without text, or name the right column in Task(..., columns=...)",
            )


def _label_names(task: Task, data: datasets.Dataset) -> tuple[str, ...] | None:
    if task.label_names is not None:
        return tuple(task.label_names)
    feature = data.features.get(task.column("label"))
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    return tuple(names) if names else None


def _unlabelled(values: list[Any]) -> bool:
    """GLUE's test splits carry -1 in every row; other hidden labels are all missing."""
    return all(value is None or (isinstance(value, (int, float)) and value == -1) for value in values)


def read_columns(task: Task, split: str, data: datasets.Dataset) -> Columns:
    """Check one split and return its texts and labels.

    A split other than ``train`` may lack labels, either the whole column or -1 (or nothing) in every row.

    Raises:
        DataError: a column is missing, a text is no text, a label is missing, NaN or out of range.
    """
    where = f"task {task.name!r}, {split}"
    arrays = find_arrays(task, data, where)
    if arrays is not None:
        return Columns(where, [], None, _labels(task, split, data, where), arrays=arrays)
    words = isinstance(task.head, TokenClassification)
    texts = _column(task, data, "text", where)
    _check_texts(texts, task.column("text"), where, words)
    pairs = None
    if "text_pair" in task.columns or "text_pair" in data.column_names:
        pairs = _column(task, data, "text_pair", where)
        _check_texts(pairs, task.column("text_pair"), where, words=False)
    if isinstance(task.head, Span) and pairs is None:
        raise DataError(
            "a span task needs a question and a context",
            where=where,
            got=f"columns {', '.join(data.column_names)}",
            try_="Task(..., columns={'text': 'question', 'text_pair': 'context', 'label': 'answers'})",
        )
    if words and pairs is not None:
        raise DataError("token classification takes one text a row", where=where, got="a column text_pair")
    if isinstance(task.head, OwnHead) and task.head.writes_text:
        if split != "train" and task.column("label") not in data.column_names:
            return Columns(where, texts, pairs, None)
        targets = _column(task, data, "label", where)
        _check_texts(targets, task.column("label"), where, words=False)
        return Columns(where, texts, pairs, None, targets)
    return Columns(where, texts, pairs, _labels(task, split, data, where))


def _labels(task: Task, split: str, data: datasets.Dataset, where: str) -> list[np.ndarray] | None:
    if split != "train" and task.column("label") not in data.column_names:
        return None
    values = _column(task, data, "label", where)
    scalar = isinstance(task.head, (Classification, Regression, OwnHead))
    if split != "train" and values and scalar and _unlabelled(values) and not _allows_minus_one(task):
        return None
    labels = task.head.check_labels(values, where, _label_names(task, data))
    if isinstance(task.head, Span):
        _check_answers(labels, _column(task, data, "text_pair", where), where)
    return labels


def _check_answers(labels: list[np.ndarray], contexts: list[str], where: str) -> None:
    for row, ((start, length), context) in enumerate(zip(labels, contexts, strict=True)):
        if start + length > len(context):
            raise DataError(
                "an answer ends behind its context",
                where=f"{where}, row {row}",
                got=f"characters {int(start)} to {int(start + length)}",
                allowed=f"0 to {len(context)}",
                try_="answer_start counts characters of the context, from 0",
            )


def _allows_minus_one(task: Task) -> bool:
    head = task.head
    return isinstance(head, Regression) and (head.low is None or head.low <= -1)


def no_label(task: Task) -> float:
    """Return the number that stands for 'no label' in the task's label rows."""
    return float("nan") if isinstance(task.head, Regression) else float(IGNORE)
