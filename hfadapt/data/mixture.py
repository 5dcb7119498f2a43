"""TaskMixture: several tasks' data as one training set, one evaluation set, a collator, metrics and callbacks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError, did_you_mean, problem
from ..heads import OwnHead
from ..tasks import Task, check_tasks
from ..training.multitask import MultiTaskMetrics
from .collator import MultiTaskCollator
from .columns import Columns, read_columns
from .mixing import MixingStrategy, make_strategy
from .preview import Preview
from .schedule import BatchForm, Layout, Schedule
from .sources import load_splits
from .tokens import TokenTable, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

__all__ = ["MixtureDataset", "SplitDataset", "TaskMixture"]


class _Tables:
    """The tokenised splits, filled when the tokenizer is known; data sets share one of these."""

    def __init__(self) -> None:
        self.by_place: dict[tuple[int, str], TokenTable] = {}

    def row(self, task: int, split: str, index: int) -> dict[str, Any]:
        try:
            table = self.by_place[task, split]
        except KeyError:
            raise DataError(
                problem(
                    "the mixture has no tokenizer yet",
                    where=f"split {split!r}",
                    try_="TaskMixture(tasks, tokenizer=...), or give mix.callbacks to the Trainer",
                )
            ) from None
        return {**table.row(index), "task_ids": task}


class MixtureDataset(Dataset):
    """The training rows of one epoch, in the order in which they are to be trained.

    A map-style data set with a fixed order: with the sequential sampler it trains, shards over processes and resumes
    exactly. ``set_epoch`` chooses the epoch; worker processes that outlive an epoch see the change.
    """

    def __init__(self, tables: _Tables, schedule: Schedule) -> None:
        self._tables = tables
        self.schedule = schedule
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()
        self._known: tuple[Schedule, int, np.ndarray, np.ndarray] | None = None

    @property
    def epoch(self) -> int:
        """The epoch whose rows are given, counted from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self._epoch[0] = epoch

    def index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return task and row of every example of the present epoch."""
        epoch = self.epoch
        if self._known is None or self._known[0] is not self.schedule or self._known[1] != epoch:
            self._known = (self.schedule, epoch, *self.schedule.index(epoch))
        return self._known[2], self._known[3]

    def __len__(self) -> int:
        return self.schedule.rows

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
        sizes: Their rows.
        by_length: Longest rows of each task first, which pads least; else the order of the data.
    """

    def __init__(
        self, tables: _Tables, split: str, tasks: Sequence[int], sizes: Sequence[int], by_length: bool
    ) -> None:
        self._tables = tables
        self.split = split
        self.by_length = by_length
        self._tasks = np.repeat(np.asarray(tasks, np.int64), sizes)
        self._rows = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else np.zeros(0, np.int64)
        self._sorted = False

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.by_length and not self._sorted:
            self._sort()
        return self._tables.row(int(self._tasks[index]), self.split, int(self._rows[index]))

    def _sort(self) -> None:
        for task in np.unique(self._tasks):
            table = self._tables.by_place.get((int(task), self.split))
            if table is not None:
                self._rows[self._tasks == task] = np.argsort(-table.lengths, kind="stable")
        self._sorted = True


class TaskMixture:
    """Mixes the data of several tasks for a plain Trainer.

    ```python
    mix = TaskMixture(tasks, strategy=Annealed())
    Trainer(model=model, args=args, train_dataset=mix.train, eval_dataset=mix.eval, data_collator=mix.collator,
            compute_metrics=mix.metrics, callbacks=mix.callbacks).train()
    ```

    The callbacks read batch size, accumulation, processes, epochs and seed off the Trainer's arguments, find the
    tokenizer, and set the sequential sampler that the mixture's own order needs.

    Args:
        tasks: The tasks with their data, in the order of the task ids.
        tokenizer: A tokenizer or its name; by default the Trainer's ``processing_class``, or the one of the model's
            base.
        strategy: How likely each task is: an object, or a registered name; by default ``Annealed()``.
        batch: ``one_task``: every optimizer step holds rows of one task, over all processes and accumulated
            micro-batches; ``mixed``: each row is drawn on its own.
        batch_size: Rows of a micro-batch on one process; only to plan without a Trainer, whose arguments must agree.
        seed: Of all draws; by default the Trainer's ``data_seed`` or ``seed``.
        epoch_steps: Optimizer steps of an epoch (300 for each task in Stickland & Murray 2019); by default as many as
            all rows together fill.
        epochs: E, to plan without a Trainer.
        max_length: Longest sequence in tokens, for tasks that set none.
        cache_dir: Folder where tokenised data are kept between runs.
        pad_to_multiple_of: Round batch widths up.
        bucket_steps: With one-task batches, the rows of this many steps are sorted by length together, which saves
            padding; 1 for random order.

    Raises:
        TaskError: no task, a name used twice, ``OwnHead`` beside other heads.
        DataError: data cannot be read, a column is missing, a label is not allowed, a task is empty.
        ConfigError: an option is not allowed.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        *,
        strategy: MixingStrategy | str | None = None,
        batch: BatchForm = "one_task",
        batch_size: int | None = None,
        seed: int | None = None,
        epoch_steps: int | None = None,
        epochs: int | None = None,
        max_length: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        pad_to_multiple_of: int | None = None,
        bucket_steps: int = 16,
    ) -> None:
        self.tasks = check_tasks(tasks)
        self.strategy = make_strategy(strategy)
        if batch not in ("one_task", "mixed"):
            raise ConfigError(
                problem("unknown form of batches", where="TaskMixture", got=repr(batch), allowed="one_task, mixed")
            )
        for name, value in (("batch_size", batch_size), ("epoch_steps", epoch_steps), ("epochs", epochs)):
            if value is not None and value < 1:
                raise ConfigError(problem(f"bad {name}", where="TaskMixture", got=value, allowed="1 or more, or None"))
        self.batch_size, self.seed, self.max_length, self.cache_dir = batch_size, seed, max_length, cache_dir
        self._splits = [load_splits(task) for task in self.tasks]
        self._columns: dict[tuple[int, str], Columns] = {}
        for index in range(len(self.tasks)):
            for split in ("train", "validation"):
                self._read(index, split)
        sizes = tuple(len(self._columns[index, "train"]) for index in range(len(self.tasks)))
        layout = Layout(batch_size or 8, epochs=epochs or 3)
        schedule = Schedule(sizes, self.strategy, batch, layout, epoch_steps, seed or 0, bucket_steps=bucket_steps)
        self._tables = _Tables()
        self._wanted: set[tuple[int, str]] = set(self._columns)
        self._train = MixtureDataset(self._tables, schedule)
        self._collator = MultiTaskCollator(
            [task.head.kind for task in self.tasks],
            label_form=_label_form(self.tasks),
            pad_to_multiple_of=pad_to_multiple_of,
        )
        self._metrics = MultiTaskMetrics(self.tasks)
        self._callbacks: list[TrainerCallback] | None = None
        if tokenizer is not None:
            self.bind(tokenizer)

    @property
    def train(self) -> MixtureDataset:
        """The training set."""
        return self._train

    @property
    def eval(self) -> SplitDataset | None:
        """All validation splits as one data set, longest rows of each task first; ``None`` if no task has one."""
        return self.dataset("validation", by_length=True) if self.has_split("validation") else None

    @property
    def collator(self) -> MultiTaskCollator:
        """The data collator."""
        return self._collator

    @property
    def metrics(self) -> MultiTaskMetrics:
        """``compute_metrics``: ``<task>_<metric>`` and ``macro``."""
        return self._metrics

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """The callbacks that the Trainer needs."""
        if self._callbacks is None:
            from ..training.callbacks import EpochSync, IdleTaskGuard

            self._callbacks = [EpochSync(self), IdleTaskGuard()]
        return list(self._callbacks)

    @property
    def schedule(self) -> Schedule:
        """Which task and rows each step takes."""
        return self._train.schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        self._train.schedule = schedule

    def preview(self) -> Preview:
        """Return the schedule as a table; ``print`` it before training."""
        return Preview(tuple(task.name for task in self.tasks), self.schedule)

    def has_split(self, split: str) -> bool:
        """Say whether any task has rows of that split."""
        return any(len(splits.get(split, ())) for splits in self._splits)

    def dataset(self, split: str, tasks: Iterable[str] | None = None, *, by_length: bool = False) -> SplitDataset:
        """Return a split of some tasks, task after task, in the order of the data unless ``by_length``.

        Args:
            split: ``train``, ``validation``, ``test`` or any other that the data have.
            tasks: Names; by default all tasks that have the split.
            by_length: Longest rows of each task first, which pads least.

        Raises:
            DataError: no such task or split.
        """
        names = [task.name for task in self.tasks]
        chosen = list(names if tasks is None else tasks)
        for name in chosen:
            if name not in names:
                raise DataError(problem(f"no task {name!r}", allowed=", ".join(names), try_=did_you_mean(name, names)))
        ids = [names.index(name) for name in chosen if len(self._splits[names.index(name)].get(split, ()))]
        if not ids:
            found = sorted({s for splits in self._splits for s in splits})
            raise DataError(
                problem(
                    f"no split {split!r}",
                    where=", ".join(chosen),
                    allowed=", ".join(found),
                    try_=did_you_mean(split, found),
                )
            )
        sizes = []
        for task in ids:
            self._read(task, split)
            sizes.append(len(self._columns[task, split]))
            self._wanted.add((task, split))
        if self._collator.tokenizer is not None:
            self._tokenize()
        return SplitDataset(self._tables, split, ids, sizes, by_length)

    def texts(self, task: str, split: str) -> Columns:
        """Return the checked texts and labels of one split, for reports."""
        index = [t.name for t in self.tasks].index(task)
        self._read(index, split)
        return self._columns[index, split]

    def bind(self, tokenizer: PreTrainedTokenizerBase | str) -> TaskMixture:
        """Tokenise the data (once for a tokenizer) and return the mixture."""
        if isinstance(tokenizer, (str, os.PathLike)):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        if self._collator.tokenizer is not tokenizer:
            self._tables.by_place.clear()
            self._collator.tokenizer = tokenizer
        self._tokenize()
        return self

    def with_layout(self, layout: Layout) -> Schedule:
        """Return the schedule that a layout would give."""
        return replace(self.schedule, layout=layout)

    def plan(self, layout: Layout, seed: int | None = None) -> TaskMixture:
        """Adopt the layout of a training run and return the mixture.

        Raises:
            ConfigError: the mixture was planned with another batch size.
        """
        if self.batch_size is not None and self.batch_size != layout.batch_size:
            raise ConfigError(
                problem(
                    "the mixture and the Trainer disagree about the batch size",
                    got=f"TaskMixture(batch_size={self.batch_size}), per device {layout.batch_size}",
                    try_="leave batch_size out of TaskMixture: it follows TrainingArguments",
                )
            )
        seed = self.seed if self.seed is not None else seed or 0
        self.schedule = replace(self.schedule, layout=layout, seed=seed)
        return self

    def _read(self, task: int, split: str) -> None:
        data = self._splits[task].get(split)
        if data is not None and len(data) and (task, split) not in self._columns:
            self._columns[task, split] = read_columns(self.tasks[task], split, data)

    def _tokenize(self) -> None:
        for task, split in sorted(self._wanted - set(self._tables.by_place)):
            self._tables.by_place[task, split] = tokenize(
                self.tasks[task],
                self._columns[task, split],
                self._collator.tokenizer,
                self.max_length,
                self.cache_dir,
            )
        lengths = tuple(self._tables.by_place[task, "train"].lengths for task in range(len(self.tasks)))
        self.schedule = replace(self.schedule, lengths=lengths)


def _label_form(tasks: tuple[Task, ...]) -> str:
    if len(tasks) > 1 or isinstance(tasks[0].head, OwnHead):
        return "matrix"
    return {"classification": "class", "regression": "number"}.get(tasks[0].head.kind, "matrix")
