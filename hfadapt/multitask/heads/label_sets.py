"""Rows of a multi-label task: zeros and ones, or the labels that hold; never a guess between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import DataError

__all__ = ["read_label_sets"]


def read_label_sets(
    values: list[Any],
    count: int,
    where: Callable[[int], str],
    index: Callable[[Any, str], int],
    names: tuple[str, ...] | None,
) -> list[np.ndarray]:
    """Return zeros and ones, float32 [C] a row.

    A row of C zeros and ones is that, any other the list of the labels that hold. With one label or two, the integers 0
    and 1 read both ways: such rows need another that settles it (``[1, 1]``, floats or booleans are no indices).

    Args:
        values: The rows.
        count: C.
        where: Names a row in errors.
        index: Makes a label (an index or a name) an index, or raises.
        names: Of the labels, for the error's advice.

    Raises:
        DataError: a row is no list, no label, or can be read in two ways: the error gives both.
    """
    for row, value in enumerate(values):
        if not isinstance(value, (list, tuple, np.ndarray)):
            allowed = f"{count} zeros and ones, or a list of labels"
            raise DataError(
                "multi-label rows need a list",
                where=where(row),
                got=repr(value),
                allowed=allowed,
                try_="[value], or hfadapt.Classification for one label a row",
            )
    rows = [list(value) for value in values]
    marks = [len(row) == count and all(_is_number(v) and v in (0, 1) for v in row) for row in rows]
    doubtful = [count <= 2 and _could_be_indices_or_marks(row, count) for row in rows]
    settled = count <= 2 and any(mark and not doubt for mark, doubt in zip(marks, doubtful, strict=True))
    found = []
    for i, row in enumerate(rows):
        if doubtful[i] and not settled:
            raise _two_readings(row, count, where(i), names)
        if not marks[i]:
            chosen = [index(v, where(i)) for v in row]
            if settled and row:
                allowed = f"{count} zeros and ones, as in other rows of these data"
                raise DataError(
                    "a row of labels among zeros and ones",
                    where=where(i),
                    got=row,
                    allowed=allowed,
                    try_=f"{[int(label in chosen) for label in range(count)]} for these labels",
                )
            row = [float(label in chosen) for label in range(count)]
        found.append(np.array(row, np.float32))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number, np.bool_))


def _is_index(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _could_be_indices_or_marks(row: list[Any], count: int) -> bool:
    different = len(set(map(repr, row))) == len(row)
    return bool(row) and different and all(_is_index(v) and v in (0, 1) and v < count for v in row)


def _two_readings(row: list[Any], count: int, where: str, names: tuple[str, ...] | None) -> DataError:
    numbers = [int(v) for v in row]
    marked = [label for label, v in enumerate(numbers) if v]
    whole = "" if len(row) == count else f" (and {count - len(row)} not said)"
    advice = [names[v] for v in numbers] if names and len(names) >= count else "names, with Task(..., label_names=...)"
    return DataError(
        "these labels can be read in two ways",
        where=where,
        got=numbers,
        allowed=f"as indices, labels {sorted(numbers)} hold; as zeros and ones, labels {marked} hold{whole}",
        try_=f"{[float(v) for v in numbers]} for zeros and ones, {advice} for labels",
    )
