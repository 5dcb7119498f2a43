"""From the columns of a data set to checked texts and labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, did_you_mean
from ..errors.rows import RowPlace
from ..multitask.heads import IGNORE, Classification, MultiLabel, OwnHead, Regression, Span, TokenClassification
from .arrays import Arrays, find_arrays

if TYPE_CHECKING:
    import datasets

    from ..multitask.task import Task

__all__ = ["Columns", "label_names_in", "read_columns"]

_MOST_NAMES = 1000


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
            allowed=f"a column for {role!r}",
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
                where=RowPlace(where, row, column=column),
                got=repr(value)[:80],
                allowed="a list of strings" if words else "a string",
                try_="drop rows without text, or name the right column in Task(..., columns=...)",
            )


def label_names_in(task: Task, data: datasets.Dataset) -> tuple[str, ...] | None:
    """The names of the classes that a split itself tells: those of its type, or the texts that are labels, sorted.

    ``None`` where labels are numbers. Of lists, and of the tags of words, those are meant that stand in them.

    Raises:
        DataError: there are more than 1,000 different ones, so that the column can hardly hold labels.
    """
    column = task.column("label")
    if column not in data.column_names:
        return None
    typed = _typed_names(task, data)
    if typed is not None:
        return typed
    many = isinstance(task.head, (TokenClassification, MultiLabel))
    found: set[str] = set()
    for value in data[column]:
        value = _words(value) if many else value
        found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str) and one)
    if len(found) > _MOST_NAMES:
        raise DataError(
            "too many different labels",
            where=f"task {task.name!r}, column {column!r}",
            got=f"{len(found):,} in {len(data):,} rows",
            allowed=f"{_MOST_NAMES:,} where the data have to tell their names",
            try_="name the column of the labels in columns, or give label_names",
        )
    return tuple(sorted(found)) or None


def _typed_names(task: Task, data: datasets.Dataset) -> tuple[str, ...] | None:
    feature = data.features.get(task.column("label"))
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    return tuple(names) if names else None


def _label_names(task: Task, data: datasets.Dataset) -> tuple[str, ...] | None:
    return tuple(task.label_names) if task.label_names is not None else _typed_names(task, data)


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
    texts = [_words(text) for text in texts] if words else texts
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
            allowed="columns text (the question) and text_pair (the context)",
            try_="Task(..., columns={'text': 'question', 'text_pair': 'context', 'label': 'answers'})",
        )
    if words and pairs is not None:
        raise DataError(
            "token classification takes one text a row",
            where=where,
            got="a column text_pair",
            allowed="one text a row",
            try_="drop the column, or name it in no role",
        )
    if isinstance(task.head, OwnHead) and task.head.writes_text:
        if split != "train" and task.column("label") not in data.column_names:
            return Columns(where, texts, pairs, None)
        targets = _column(task, data, "label", where)
        _check_texts(targets, task.column("label"), where, words=False)
        return Columns(where, texts, pairs, None, targets)
    labels = _labels(task, split, data, where)
    if words and labels is not None:
        _check_one_label_a_word(texts, labels, where)
    return Columns(where, texts, pairs, labels)


def _words(value: Any) -> Any:
    """Words, or their labels, of a cell of a text file: with spaces between, or as a JSON list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            found = None  # a text that begins with a bracket
        if isinstance(found, list):
            return found
    words = value.split()
    return [int(word) for word in words] if words and all(map(_is_number, words)) else words


def _is_number(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def _check_one_label_a_word(texts: list[Any], labels: list[np.ndarray], where: str) -> None:
    for row, (words, tags) in enumerate(zip(texts, labels, strict=True)):
        if len(words) != len(tags):
            raise DataError(
                "fewer labels than words" if len(tags) < len(words) else "more labels than words",
                where=RowPlace(where, row),
                got=f"{len(tags)} labels, {len(words)} words",
                allowed="one label a word",
                try_="words and labels are divided at spaces: write a list (JSON) where they hold any",
            )


def _labels(task: Task, split: str, data: datasets.Dataset, where: str) -> list[np.ndarray] | None:
    if split != "train" and task.column("label") not in data.column_names:
        return None
    values = _column(task, data, "label", where)
    scalar = isinstance(task.head, (Classification, Regression, OwnHead))
    if split != "train" and values and scalar and _unlabelled(values) and not _allows_minus_one(task):
        return None
    if isinstance(task.head, TokenClassification):
        values = [_words(value) for value in values]
    labels = task.head.check_labels(values, where, _label_names(task, data))
    if isinstance(task.head, Span):
        _check_answers(labels, _column(task, data, "text_pair", where), where)
    return labels


def _check_answers(labels: list[np.ndarray], contexts: list[str], where: str) -> None:
    for row, ((start, length), context) in enumerate(zip(labels, contexts, strict=True)):
        if start + length > len(context):
            raise DataError(
                "an answer ends behind its context",
                where=RowPlace(where, row),
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
