"""TaskMixture: several tasks' data as one training set, one evaluation set, a collator, metrics and callbacks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..data.collator import MultiTaskCollator
from ..data.columns import Columns
from ..data.datasets import MixtureDataset, SplitDataset, Tables
from ..data.mixing import MixingStrategy, make_strategy
from ..data.preview import Preview, html_table
from ..data.schedule import BatchForm, Layout, Schedule
from ..data.splits import TaskSplits
from ..data.tokenizer import check_tokenizer, load_tokenizer
from ..data.tokens import TokenTable, tokenize
from ..errors import ConfigError, DataError, did_you_mean
from ..errors.limits import require_number
from ..errors.names import names_of
from ..multitask.compute_metrics import MultiTaskMetrics
from ..multitask.heads import OwnHead
from ..multitask.task import Task, check_tasks
from .uncounted import require_sizes, rows_of_streams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

__all__ = ["TaskMixture"]


class TaskMixture:
    """Mixes the data of several tasks for a plain Trainer.

    ```python
    mix = TaskMixture(tasks, strategy=Annealed())
    Trainer(model=model, args=args, train_dataset=mix.train, eval_dataset=mix.eval, data_collator=mix.collator,
            compute_metrics=mix.metrics, callbacks=mix.callbacks).train()
    ```

    The callbacks read batch size, accumulation, processes, epochs and seed off the Trainer's arguments, find the
    tokenizer, and set the sequential sampler that the mixture's own order needs. Without them a loader of ``train`` is
    refused, as any other order of the rows is.

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
        bucket_steps: The rows of up to this many steps are sorted by length together, both texts of pairs that are
            encoded separately, which saves padding; 1 for random order. How often each task is drawn does not change;
            in mixed batches rows change places within those steps, so tasks of like lengths meet more often (under
            round robin, whose batches hold all tasks alike, only rows of one task do).
        rows: How many training rows tasks have whose data are an ``IterableDataset``, by name. Such a stream is read
            as it comes, a block at a time. Where its rows are not given, the strategy must be one that asks for no
            sizes (``RoundRobin()``), unless there is one task, and ``epoch_steps`` says how long an epoch is.

    Raises:
        TaskError: no task, a name used twice, ``OwnHead`` beside other heads.
        DataError: data cannot be read, a column is missing, a label is not allowed, a task is empty.
        ConfigError: an option is not allowed.
    """

    def __init__(
        self,
        tasks: Task | Iterable[Task],
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
        bucket_steps: int = 128,
        rows: Mapping[str, int] | None = None,
    ) -> None:
        self.tasks = check_tasks(tasks)
        self.strategy = make_strategy(strategy)
        if batch not in ("one_task", "mixed"):
            raise ConfigError(
                "unknown form of batches",
                where="TaskMixture",
                got=repr(batch),
                allowed="one_task, mixed",
                try_="batch='mixed'",
            )
        given = {
            "batch_size": batch_size,
            "epoch_steps": epoch_steps,
            "epochs": epochs,
            "pad_to_multiple_of": pad_to_multiple_of,
        }
        for name, value in given.items():
            require_number(name, value, where="TaskMixture", whole=True, optional=True, least=1)
        require_number("bucket_steps", bucket_steps, where="TaskMixture", whole=True, least=1)
        require_number("seed", seed, where="TaskMixture", whole=True, optional=True, least=0)
        # as of Task: a start, an end, and something between them
        require_number("max_length", max_length, where="TaskMixture", whole=True, optional=True, least=4)
        self.batch_size, self.seed, self.max_length, self.cache_dir = batch_size, seed, max_length, cache_dir
        self._data = TaskSplits(self.tasks)
        self._rows = rows_of_streams(self.tasks, self._data.streams, rows)
        sizes = tuple(self.rows_of(index, "train") for index in range(len(self.tasks)))
        require_sizes(self.tasks, sizes, self.strategy, epoch_steps)
        layout, streams = Layout(batch_size or 8, epochs=epochs or 3), tuple(self._data.streams)
        schedule = Schedule(
            sizes, self.strategy, batch, layout, epoch_steps, seed or 0, bucket_steps=bucket_steps, streams=streams
        )
        self._tables = Tables()
        self._wanted: set[tuple[int, str]] = set(self._data.columns)
        self._train = MixtureDataset(self._tables, schedule)
        self._train.planned = batch_size is not None
        self._collator = MultiTaskCollator(
            [task.head.label_place for task in self.tasks],
            label_form=_label_form(self.tasks),
            pad_to_multiple_of=pad_to_multiple_of,
        )
        self._metrics = MultiTaskMetrics(self.tasks)
        self._callbacks: list[TrainerCallback] | None = None
        if tokenizer is not None:
            self.bind(tokenizer)
        elif not self.reads_text:
            self._tokenize()

    @property
    def reads_text(self) -> bool:
        """Whether the tasks read texts, which need a tokenizer; else they read images or sound."""
        return self._data.reads_text

    @property
    def train(self) -> MixtureDataset:
        """The training set."""
        return self._train

    @property
    def eval(self) -> SplitDataset | None:
        """All labelled validation splits as one data set, longest rows of each task first; ``None`` if there is none.

        Rows without labels have no loss, and would count as 0 in Trainer's mean over rows.
        """
        labelled = [task.name for index, task in enumerate(self.tasks) if self._data.labelled(index, "validation")]
        return self.dataset("validation", labelled, by_length=True) if labelled else None

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
            from .callbacks import EpochSync, IdleTaskGuard

            self._callbacks = [EpochSync(self), IdleTaskGuard()]
        return list(self._callbacks)

    @property
    def schedule(self) -> Schedule:
        """Which task and rows each step takes."""
        return self._train.schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        self._train.schedule = schedule

    def __repr__(self) -> str:
        tasks = ", ".join(f"{task.name}: {self._shown(i, 'train')} rows" for i, task in enumerate(self.tasks))
        return f"TaskMixture({tasks}; {self._how})"

    def _repr_html_(self) -> str:
        """The tasks and their data, which a notebook shows; ``preview()`` shows what will be drawn of them."""
        lines = [
            [
                task.name,
                type(task.head).__name__,
                *(self._shown(i, split) for split in ("train", "validation")),
                ", ".join(task.metrics),
            ]
            for i, task in enumerate(self.tasks)
        ]
        return html_table(
            f"TaskMixture: {self._how}", ["task", "head", "train rows", "validation rows", "metrics"], lines
        )

    def _shown(self, task: int, split: str) -> str:
        count = self.rows_of(task, split)
        return f"{count:,}" if count or not self._data.has(task, split) else "a stream of"

    @property
    def _how(self) -> str:
        schedule = self.schedule
        rows = f"{schedule.steps} steps of {schedule.layout.step_rows} rows an epoch"
        return f"{schedule.strategy!r}, {schedule.form} batches, {rows}"

    def preview(self) -> Preview:
        """Return the schedule as a table: ``print`` it before training, or let a notebook show it."""
        return Preview(tuple(task.name for task in self.tasks), self.schedule)

    def untrained(self, steps: int) -> list[str]:
        """Return the tasks of which no row was drawn in the first ``steps`` optimizer steps of a run."""
        rows = self.schedule.trained(steps)
        return [task.name for task, count in zip(self.tasks, rows, strict=True) if not count]

    def has_split(self, split: str) -> bool:
        """Say whether any task has rows of that split."""
        return any(self._data.has(task, split) for task in range(len(self.tasks)))

    def rows_of(self, task: int, split: str) -> int:
        """Return how many rows a task has in a split; 0 where it lacks the split, or streams rows nobody has counted.

        A stream of another split than ``train`` is read whole.
        """
        streamed = split == "train" and task in self._rows
        return self._rows[task] if streamed else self._data.count(task, split)

    def has_labels(self, task: str, split: str) -> bool:
        """Say whether a task has labelled rows (or texts to write) in a split."""
        return self._data.labelled([t.name for t in self.tasks].index(task), split)

    def dataset(self, split: str, tasks: str | Iterable[str] | None = None, *, by_length: bool = False) -> SplitDataset:
        """Return a split of some tasks, task after task, in the order of the data unless ``by_length``.

        Args:
            split: ``train``, ``validation``, ``test`` or any other that the data have.
            tasks: Names; by default all tasks that have the split.
            by_length: Longest rows of each task first, which pads least.

        Raises:
            DataError: no such task or split.
        """
        names = [task.name for task in self.tasks]
        chosen = list(names if tasks is None else names_of(tasks))
        for name in chosen:
            if name not in names:
                raise DataError(
                    f"no task {name!r}",
                    where="TaskMixture.dataset",
                    got=repr(name),
                    allowed=", ".join(names),
                    try_=did_you_mean(name, names) or f"{names[0]!r}",
                )
        ids = [names.index(name) for name in chosen if self._data.has(names.index(name), split)]
        streamed = [self.tasks[task].name for task in ids if split == "train" and task in self._rows]
        if streamed:
            raise DataError(
                "the rows of a stream are trained in their order, and have no list",
                where="TaskMixture.dataset",
                got=f"split 'train' of {', '.join(streamed)}",
                allowed="mix.train, or a split whose rows are all there",
                try_="datasets.Dataset.from_list(list(stream.take(1000))) as a split of its own",
            )
        if not ids:
            found = self._data.names
            raise DataError(
                f"no split {split!r}",
                where=", ".join(chosen),
                got=repr(split),
                allowed=", ".join(found),
                try_=did_you_mean(split, found),
            )
        sizes = []
        for task in ids:
            sizes.append(len(self._data.read(task, split)))
            self._wanted.add((task, split))
        if self._collator.tokenizer is not None or not self.reads_text:
            self._tokenize()
        return SplitDataset(self._tables, split, ids, sizes, by_length)

    def texts(self, task: str, split: str) -> Columns:
        """Return the checked texts and labels of one split, for reports; of a stream those of its first rows."""
        index = [t.name for t in self.tasks].index(task)
        return self._data.read(index, split)

    def bind(self, tokenizer: PreTrainedTokenizerBase | str) -> TaskMixture:
        """Tokenise the data (once for a tokenizer) and return the mixture."""
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = load_tokenizer(tokenizer)
        elif self.reads_text:
            check_tokenizer(tokenizer, "TaskMixture")
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
                "the mixture and the Trainer disagree about the batch size",
                where="TaskMixture.plan",
                got=f"TaskMixture(batch_size={self.batch_size}), per device {layout.batch_size}",
                allowed=f"batch_size={layout.batch_size}, or None",
                try_="leave batch_size out of TaskMixture: it follows TrainingArguments",
            )
        seed = self.seed if self.seed is not None else seed or 0
        self.schedule = replace(self.schedule, layout=layout, seed=seed)
        self._train.planned = True
        return self

    def _tokenize(self) -> None:
        tokenizer = self._collator.tokenizer
        tables = self._tables.by_place
        for task, split in sorted(self._wanted - set(tables)):
            if split == "train" and task in self._rows:
                tables[task, split] = self._data.streams[task].bind(tokenizer, self.max_length)
                continue
            tables[task, split] = tokenize(
                self.tasks[task],
                self._data.read(task, split),
                tokenizer,
                self.max_length,
                self.cache_dir,
            )
        trained = [tables[task, "train"] for task in range(len(self.tasks))]
        lengths = tuple(one.widths if isinstance(one, TokenTable) else np.zeros((0, 1), np.int64) for one in trained)
        # the windows of long contexts make more rows than the data have
        sizes = tuple(self._rows[task] if task in self._rows else len(widths) for task, widths in enumerate(lengths))
        self.schedule = replace(self.schedule, lengths=lengths, sizes=sizes)


def _label_form(tasks: tuple[Task, ...]) -> str:
    first, *others = tasks
    if others or isinstance(first.head, OwnHead):
        return "matrix"
    return {"classification": "class", "regression": "number"}.get(first.head.kind, "matrix")
