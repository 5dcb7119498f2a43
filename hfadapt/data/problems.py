"""Everything that is wrong with a task's data, found before anything is trained, with file, line and column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, HFAdaptError
from ..errors.rows import RowPlace
from .columns import read_columns
from .lines import line_of
from .sources import format_of

if TYPE_CHECKING:
    from ..multitask.task import Task

__all__ = ["problems_in"]

_MOST_ROWS = 10


def problems_in(task: Task, rows: Mapping[str, Any], files: Mapping[str, Path]) -> list[HFAdaptError]:
    """Every error of a task's splits; of each split, those of at most ten rows.

    Args:
        task: Whose columns and head say what the data should hold.
        rows: Its splits.
        files: The files of those splits that come from one.
    """
    found: list[HFAdaptError] = []
    for split in ("train", "validation", "test"):
        if split in rows:
            found += _of_split(task, split, rows[split], files.get(split))
    return found


def _of_split(task: Task, split: str, data: Any, file: Path | None) -> list[HFAdaptError]:
    found: list[HFAdaptError] = []
    left = list(range(len(data)))
    while left:
        try:
            read_columns(task, split, data if len(left) == len(data) else data.select(left))
            break
        except DataError as error:
            place = error.where
            if not isinstance(place, RowPlace):
                found.append(error if file is None else error.at(f"{file} ({place})"))
                break
            if len(found) == _MOST_ROWS:
                found.append(_further(task, split, file))
                break
            row = left.pop(place.row)  # what is wrong with the other rows shows without it
            found.append(error.at(_place(task, split, file, place, row)))
    return found


def _place(task: Task, split: str, file: Path | None, place: RowPlace, row: int) -> str:
    column = f"column {place.column or task.column('label')!r}"
    inside = f", {place.inside}" if place.inside else ""
    of = f"task {task.name!r}, {split}"
    if file is None:
        return f"{of}, row {row}, {column}{inside}"
    line = line_of(file, format_of(file) or "parquet", row)
    return f"{file}, {f'row {row}' if line is None else f'line {line}'}, {column}{inside} ({of})"


def _further(task: Task, split: str, file: Path | None) -> DataError:
    return DataError(
        "further rows are wrong",
        where=f"task {task.name!r}, {split}" if file is None else str(file),
        got=f"more than {_MOST_ROWS}",
        allowed="none",
        try_="mend these, and try again",
    )
