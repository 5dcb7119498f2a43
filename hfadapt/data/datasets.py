"""Data sets of a mixture: the training rows of an epoch in their order, and the splits to evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from ..errors import DataError
from .schedule import Schedule
from .streams import StreamTable
from .tokens import TokenTable

__all__ = ["MixtureDataset", "SplitDataset", "Tables"]


class Tables:
    """The tokenised splits, filled when the tokenizer is known; data sets share one of these."""

    def __init__(self) -> None:
        self.by_place: dict[tuple[int, str], TokenTable | StreamTable] = {}

    def size(self, task: int, split: str, before: int) -> int:
        """Return how many rows a split has; ``before`` while it is not tokenised."""
        table = self.by_place.get((task, split))
        return len(table) if isinstance(table, TokenTable) else before

    def row(self, task: int, split: str, index: int) -> dict[str, Any]:
        """Return one tokenised row with its task id.

        Raises:
            DataError: nothing is tokenised yet.
        """
        try:
            table = self.by_place[task, split]
        except KeyError:
            raise DataError(
                "the mixture has no tokenizer yet",
                where=f"split {split!r}",
                got="texts, and nothing that makes tokens of them",
                allowed="a tokenizer that is known before the first row",
                try_="TaskMixture(tasks, tokenizer=...), or give mix.callbacks to the Trainer",
            ) from None
        return {**table.row(index), "task_ids": task}


class MixtureDataset(Dataset):
    """The training rows of one epoch, in the order in which they are to be trained.

    A map-style data set with a fixed order: with the sequential sampler it trains, shards over processes and resumes
    exactly. ``set_epoch`` chooses the epoch and ``stop`` the tasks that have stopped; worker processes that outlive an
    epoch see the change.

    A loader is served only when the mixture knows its batches (``planned``), and only in order: any other sampler would
    change what is trained without a word. Single rows may be looked at any time.
    """

    def __init__(self, tables: Tables, schedule: Schedule) -> None:
        self._tables = tables
        self._schedule = schedule
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()
        self._stops = torch.full((len(schedule.sizes),), -1, dtype=torch.long).share_memory_()
        self._known: tuple[Schedule, int, np.ndarray, np.ndarray] | None = None
        #: Whether the schedule is that of a training run, and no guess.
        self.planned = False
        self._read_in, self._read_to = 0, 0

    @property
    def schedule(self) -> Schedule:
        """Which task and rows each step takes."""
        stops = tuple(self._stops.tolist())
        stops = stops if max(stops) >= 0 else ()
        if self._schedule.stops != stops:
            self._schedule = replace(self._schedule, stops=stops)
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def stop(self, epochs: Mapping[int, int]) -> None:
        """Draw no more rows of some tasks; replaces what was stopped before.

        Args:
            epochs: Task to the epoch, counted from 0, from which on it is not drawn.
        """
        for task in range(len(self._stops)):
            self._stops[task] = epochs.get(task, -1)

    @property
    def epoch(self) -> int:
        """The epoch whose rows are given, counted from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self._epoch[0] = epoch

    def index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return task and row of every example of the present epoch."""
        epoch, schedule = self.epoch, self.schedule
        if self._known is None or self._known[0] is not schedule or self._known[1] != epoch:
            self._known = (schedule, epoch, *schedule.index(epoch))
        return self._known[2], self._known[3]

    def __len__(self) -> int:
        return self.schedule.rows

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return a batch of a ``DataLoader``.

        Raises:
            DataError: the mixture was not told of this training run, or the loader does not keep the rows' order.
        """
        if not self.planned:
            raise DataError(
                "a loader reads the training rows, and the mixture does not know how they are trained",
                where="TaskMixture.train",
                got="no batch size, epochs and seed; a Trainer would also shuffle the rows",
                allowed="a mixture that was told of the run, by a Trainer or by its own arguments",
                try_="Trainer(..., callbacks=mix.callbacks); for a loop of your own TaskMixture(batch_size=..., "
                "epochs=...)",
            )
        if self.schedule.streams and get_worker_info() is not None:
            raise DataError(
                "a stream is read by the process that trains: worker processes would each read all of it",
                where="TaskMixture.train",
                got="a loader with num_workers > 0",
                allowed="num_workers=0",
                try_="TrainingArguments(dataloader_num_workers=0), the default",
            )
        start = indices[0] if len(indices) else 0
        in_order = all(index == start + place for place, index in enumerate(indices))
        if self._read_in != self.epoch:
            self._read_in, self._read_to = self.epoch, 0
        # rows begin anew near the first, at a place that depends on the rank and the worker process
        worker = get_worker_info()
        first = self.schedule.layout.step_rows * (1 if worker is None else worker.num_workers)
        if not in_order or first <= start < self._read_to:
            raise DataError(
                "the loader does not keep the mixture's order of rows",
                where="TaskMixture.train",
                got=f"rows {', '.join(map(str, indices[:6]))}{', ...' if len(indices) > 6 else ''} after "
                f"{self._read_to}",
                allowed="a sequential sampler",
                try_="Trainer(..., callbacks=mix.callbacks); for a loop of your own DataLoader(..., shuffle=False)",
            )
        self._read_to = start + len(indices)
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        tasks, rows = self.index()
        return self._tables.row(int(tasks[index]), "train", int(rows[index]))


class SplitDataset(Dataset):
    """One split of several tasks, one task after the other.

    Args:
        tables: Where the tokenised rows are.
        split: Name of the split.
        tasks: Ids of the tasks that have it.
        sizes: Their rows; windows of long contexts, which are more, count once they are tokenised.
        by_length: Longest rows of each task first, which pads least; else the order of the data.
    """

    def __init__(self, tables: Tables, split: str, tasks: Sequence[int], sizes: Sequence[int], by_length: bool) -> None:
        self._tables = tables
        self.split = split
        self.by_length = by_length
        self._sizes = dict(zip(tasks, sizes, strict=True))
        self._order: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(self._tables.size(task, self.split, size) for task, size in self._sizes.items())

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._order is None or len(self._order[0]) != len(self):
            self._order = self._index()
        tasks, rows = self._order
        return self._tables.row(int(tasks[index]), self.split, int(rows[index]))

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return task and row of every example."""
        tasks, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for task, size in self._sizes.items():
            table = self._tables.by_place.get((task, self.split))
            order = np.arange(self._tables.size(task, self.split, size))
            if isinstance(table, TokenTable) and self.by_length:
                order = np.argsort(-table.lengths, kind="stable")
            tasks.append(np.full(len(order), task, np.int64))
            rows.append(order)
        return np.concatenate(tasks), np.concatenate(rows)
