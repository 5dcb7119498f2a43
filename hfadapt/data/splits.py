"""The splits of several tasks: rows that are all there, and training rows that come from a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .columns import Columns, read_columns
from .sources import load_splits
from .streams import StreamTable, is_stream, read_whole

if TYPE_CHECKING:
    from ..multitask.task import Task

__all__ = ["TaskSplits"]


class TaskSplits:
    """What the data of tasks hold, checked when it is first asked for; tasks are told by number.

    Args:
        tasks: With their data.

    Raises:
        DataError: data cannot be read, a column is missing, a label is not allowed, a task is empty, or the tasks do
            not read the same kind of input.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self._splits = [load_splits(task) for task in self.tasks]
        self.streams = {
            index: StreamTable(task, splits["train"])
            for index, (task, splits) in enumerate(zip(self.tasks, self._splits, strict=True))
            if is_stream(splits["train"])
        }
        #: What was checked, by task and split; of a stream its first rows.
        self.columns: dict[tuple[int, str], Columns] = {}
        for index in range(len(self.tasks)):
            for split in ("train", "validation"):
                if self.has(index, split):
                    self.read(index, split)
        self._check_inputs()

    @property
    def names(self) -> list[str]:
        """The names of all splits."""
        return sorted({split for splits in self._splits for split in splits})

    def has(self, task: int, split: str) -> bool:
        """Say whether a task has rows in a split."""
        return (split == "train" and task in self.streams) or self.count(task, split) > 0

    def count(self, task: int, split: str) -> int:
        """Return how many rows there are, 0 without the split. A stream is read whole, that of ``train`` excepted."""
        data = self._splits[task].get(split)
        if is_stream(data):
            data = self._splits[task][split] = read_whole(data, f"task {self.tasks[task].name!r}, {split}")
        return 0 if data is None else len(data)

    def read(self, task: int, split: str) -> Columns:
        """Return the checked texts and labels of a split that the task has.

        Raises:
            DataError: see ``read_columns``.
        """
        if (task, split) not in self.columns:
            stream = self.streams.get(task) if split == "train" else None
            self.columns[task, split] = (
                read_columns(self.tasks[task], split, self._data(task, split)) if stream is None else stream.first
            )
        return self.columns[task, split]

    def _data(self, task: int, split: str) -> Any:
        self.count(task, split)
        return self._splits[task][split]

    def labelled(self, task: int, split: str) -> bool:
        """Say whether a task has labelled rows, or texts to write, in a split."""
        if not self.has(task, split):
            return False
        columns = self.read(task, split)
        return columns.labels is not None or columns.targets is not None

    @property
    def reads_text(self) -> bool:
        """Whether the tasks read texts, which need a tokenizer; else they read images or sound."""
        return any(columns.arrays is None for columns in self.columns.values())

    def _check_inputs(self) -> None:
        """Raise ``DataError`` unless all tasks read the same kind of input: one base serves them."""
        kinds = {
            self.tasks[task].name: "texts" if columns.arrays is None else columns.arrays.role
            for (task, _), columns in self.columns.items()
        }
        if len(set(kinds.values())) > 1:
            raise DataError(
                "the tasks do not read the same kind of input",
                where="TaskMixture",
                got=", ".join(f"{task}: {kind}" for task, kind in kinds.items()),
                allowed="texts for all, or pixel_values for all, or input_features for all",
                try_="a mixture and a model for each kind",
            )
