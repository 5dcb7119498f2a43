"""Tasks whose rows are images or sound: arrays that a processor of transformers made, read when a batch needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets

    from ..multitask.task import Task

__all__ = ["ROLES", "Arrays", "find_arrays"]

ROLES = ("pixel_values", "input_features")


class Arrays:
    """One column of arrays of one shape; rows are read from the data set on demand.

    Args:
        role: What the model calls it: ``pixel_values`` or ``input_features``.
        data: The split.
        column: Name of the column.
        where: For messages.
    """

    def __init__(self, role: str, data: datasets.Dataset, column: str, where: str) -> None:
        self.role, self.column, self.where = role, column, where
        self._data = data.select_columns([column]).with_format("numpy")
        self.shape = self._read(0).shape

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return one row, float32.

        Raises:
            DataError: it is no array of numbers, or not of the first row's shape.
        """
        value = self._read(row)
        if value.shape != self.shape or not np.isfinite(value).all():
            raise DataError(
                f"column {self.column!r} holds an array that does not fit",
                where=f"{self.where}, row {row}",
                got=f"shape {list(value.shape)}" if value.shape != self.shape else "numbers that are not finite",
                allowed=f"finite numbers of shape {list(self.shape)}, as in the first row",
                try_="let the processor resize or pad all rows alike",
            )
        return value

    @property
    def lengths(self) -> np.ndarray:
        """All rows are equally long."""
        return np.ones(len(self), np.int64)

    def _read(self, row: int) -> np.ndarray:
        value = self._data[row][self.column]
        try:
            # nested lists come as an array of arrays
            nested = isinstance(value, np.ndarray) and value.dtype == np.dtype(object)
            return _stacked(value) if nested else np.asarray(value, np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"column {self.column!r} does not hold arrays of numbers",
                where=f"{self.where}, row {row}",
                got=f"{type(value).__name__}: {error}",
                allowed="arrays, or nested lists, of numbers, with rows of equal length",
                try_="run the model's image processor or feature extractor over the data set first",
            ) from error


def _stacked(value: np.ndarray) -> np.ndarray:
    """An array of arrays of arrays as one array."""
    if value.dtype != np.dtype(object):
        return value.astype(np.float32)
    return np.stack([_stacked(np.asarray(part)) for part in value])


def find_arrays(task: Task, data: datasets.Dataset, where: str) -> Arrays | None:
    """Return the column of arrays that a task reads; ``None`` for a task on texts.

    Raises:
        DataError: a named column is missing, the arrays do not fit, or the head wants tokens.
    """
    roles = [role for role in ROLES if role in task.columns or role in data.column_names]
    if not roles:
        return None
    role = roles[0]
    column = task.column(role)
    if column not in data.column_names:
        raise DataError(
            f"no column {column!r} for {role!r}",
            where=where,
            got=repr(column),
            allowed=f"columns {', '.join(data.column_names)}",
            try_=did_you_mean(column, data.column_names) or f"Task(..., columns={{{role!r}: NAME}})",
        )
    if not task.head.per_text or task.pair == "separate":
        raise DataError(
            "images and sound have no tokens and no pairs",
            where=where,
            got=f"{type(task.head).__name__}, pair={task.pair!r}",
            allowed="Classification, MultiLabel, Regression or OwnHead, with pair='joint'",
            try_="pair='joint'" if task.head.per_text else "hfadapt.Classification, one answer a row",
        )
    return Arrays(role, data, column, where)
