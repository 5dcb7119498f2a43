"""Which task and which rows each training step takes: a pure function of seed and epoch.

Nothing here has a state that could get lost: epoch ``e`` is drawn from the stream (seed, e), the order of a task's rows
from (seed, task, pass). All ranks compute the same lists, and a resumed run computes the lists it would have had.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import ConfigError
from .buckets import by_length, keep_walks, widths_of
from .mixing import MixingStrategy, checked_probabilities

__all__ = ["BatchForm", "Layout", "Schedule"]

BatchForm = Literal["one_task", "mixed"]
# separates the stream of task draws from the streams of row orders, and of the order of steps in a mixed window
_DRAWS, _ROWS, _STEPS = 0, 1, 2


@dataclass(frozen=True)
class Layout:
    """How rows fill an optimizer step.

    Args:
        batch_size: Rows of one micro-batch on one process.
        accumulation: Micro-batches of one optimizer step.
        processes: Processes that train together.
        epochs: E, counted in epochs of the mixture.
    """

    batch_size: int = 8
    accumulation: int = 1
    processes: int = 1
    epochs: int = 3

    @property
    def step_rows(self) -> int:
        """Rows of one optimizer step over all processes."""
        return self.batch_size * self.accumulation * self.processes


@dataclass(frozen=True)
class Schedule:
    """The plan of a training run.

    Args:
        sizes: Training rows of each task; 0 where nobody knows them.
        strategy: Says how likely each task is.
        form: ``one_task``: all rows of an optimizer step, over all ranks and accumulated micro-batches, are of one
            task; ``mixed``: each row is drawn on its own. Which rows meet in a step is then settled by length.
        layout: How rows fill a step.
        epoch_steps: Optimizer steps of an epoch; ``None`` for as many as all rows together fill.
        seed: Of all draws.
        lengths: Tokens of each row of each task, [N], or of each of its K texts where they are padded alone, [N, K];
            puts rows of like length into a step. ``None`` for random order.
        bucket_steps: Of how many steps at most the rows are sorted by length together; 1 for random order.
        stops: The epoch, counted from 0, from which on each task is not drawn any more, -1 for never; empty where no
            task has stopped. The others share its steps in the proportion that they had.
        streams: The tasks whose rows come in the order of a stream, which begins again without end.
    """

    sizes: tuple[int, ...]
    strategy: MixingStrategy
    form: BatchForm = "one_task"
    layout: Layout = field(default_factory=Layout)
    epoch_steps: int | None = None
    seed: int = 0
    lengths: tuple[np.ndarray, ...] | None = field(default=None, compare=False, repr=False)
    bucket_steps: int = 128
    stops: tuple[int, ...] = ()
    streams: tuple[int, ...] = ()

    @property
    def _counted(self) -> tuple[int, ...]:
        """The sizes as strategies get them: what they give for a task of unknown size does not hang on it."""
        return tuple(size or 1 for size in self.sizes)

    @property
    def steps(self) -> int:
        """Optimizer steps of one epoch."""
        return self.epoch_steps or max(1, sum(self.sizes) // self.layout.step_rows)

    @property
    def rows(self) -> int:
        """Rows of one epoch over all processes, always whole steps."""
        return self.steps * self.layout.step_rows

    @property
    def _rows_per_draw(self) -> int:
        return self.layout.step_rows if self.form == "one_task" else 1

    @property
    def _draws_per_epoch(self) -> int:
        return self.rows // self._rows_per_draw

    @property
    def _buckets(self) -> tuple[np.ndarray, ...] | None:
        """The lengths to sort by; None for random order, and where all rows are alike (images)."""
        if self.lengths is None or self.bucket_steps <= 1 or (self.streams and self.form == "mixed"):
            return None
        known = [one for task, one in enumerate(self.lengths) if task not in self.streams]
        alike = all(one.shape[1:] == known[0].shape[1:] and (one == known[0][:1]).all() for one in known)
        return None if alike else self.lengths

    def probabilities(self, epoch: int) -> np.ndarray:
        """Return the probability of each task in an epoch counted from 0."""
        epochs = self.layout.epochs
        found = checked_probabilities(self.strategy, self._counted, min(epoch + 1, epochs), epochs)
        stopped = self._stopped(epoch)
        if stopped.any():
            found = np.where(stopped, 0.0, found)
            found = found / found.sum() if found.any() else ~stopped / max(1, (~stopped).sum())
        return found

    def _stopped(self, epoch: int) -> np.ndarray:
        stops = np.asarray(self.stops or (-1,) * len(self.sizes))
        return (stops >= 0) & (stops <= epoch)

    def draws(self, epoch: int) -> np.ndarray:
        """Return the task of each draw of an epoch counted from 0: one a step, or one a row when mixed."""
        count = self._draws_per_epoch
        stopped = self._stopped(epoch)
        if not stopped.any() or stopped.all():
            return self._drawn(epoch, count)
        # strategies know nothing of tasks that stop: what they draw of these is passed over, so that those that go in
        # turn still do. Some draw the other tasks seldom or never
        for times in (1, 2, 4, 8, 16, 32):
            drawn = self._drawn(epoch, times * count)
            drawn = drawn[~stopped[drawn]]
            if len(drawn) >= count:
                return drawn[:count]
        stream = np.random.default_rng([self.seed, _DRAWS, epoch])
        return stream.choice(len(self.sizes), size=count, p=self.probabilities(epoch)).astype(np.int64)

    def _drawn(self, epoch: int, count: int) -> np.ndarray:
        stream = np.random.default_rng([self.seed, _DRAWS, epoch])
        epochs, start = self.layout.epochs, epoch * self._draws_per_epoch
        drawn = self.strategy.draw(self._counted, min(epoch + 1, epochs), epochs, count, start, stream)
        known = isinstance(drawn, np.ndarray) and drawn.shape == (count,) and np.issubdtype(drawn.dtype, np.integer)
        if not known or (count and not 0 <= drawn.min() <= drawn.max() < len(self.sizes)):
            raise ConfigError(
                "a mixing strategy draws no tasks",
                where=f"{self.strategy!r}, epoch {epoch + 1}",
                got=f"{drawn.dtype} {list(drawn.shape)}" if isinstance(drawn, np.ndarray) else repr(drawn),
                allowed=f"an integer array of {count} task numbers, 0 to {len(self.sizes) - 1}",
                try_=f"stream.integers({len(self.sizes)}, size={count}), where all are equally likely",
            )
        return drawn

    def counts(self, epoch: int) -> np.ndarray:
        """Return how many rows of each task an epoch takes."""
        return np.bincount(self.draws(epoch), minlength=len(self.sizes)) * self._rows_per_draw

    @functools.cached_property
    def _used_before(self) -> dict[int, np.ndarray]:
        return {0: np.zeros(len(self.sizes), np.int64)}

    def _used(self, epoch: int) -> np.ndarray:
        """Return how many rows of each task all earlier epochs take; a run asks for every epoch in turn."""
        found = self._used_before
        for later in range(len(found), epoch + 1):
            found[later] = found[later - 1] + self.counts(later - 1)
        return found[epoch]

    def index(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return task and row of every example of an epoch counted from 0, int64 [rows] each.

        Each task walks through all its rows in a new random order before any row comes again, also across epochs.
        Rows of streams come in their order and are counted over all passes; mixed rows beside any keep their places.
        Mixed rows change places within a window of ``bucket_steps`` steps, so a window holds what was drawn for it;
        under strategies with a draw of their own (round robin) they do so with rows of their task alone.
        """
        tasks = np.repeat(self.draws(epoch), self._rows_per_draw)
        rows, passes = np.empty_like(tasks), np.empty_like(tasks)
        used = self._used(epoch)
        for task, size in enumerate(self.sizes):
            places = np.flatnonzero(tasks == task)
            if not len(places):
                continue
            numbers = used[task] + np.arange(len(places))
            if task in self.streams:
                rows[places] = numbers
                continue
            first, last = numbers[0] // size, numbers[-1] // size
            order = np.concatenate([self._order(task, passed) for passed in range(first, last + 1)])
            rows[places] = order[numbers - first * size]
            passes[places] = numbers // size
        if self.form != "mixed" or (lengths := self._buckets) is None:
            return tasks, rows
        order = self._bucketed(epoch, tasks, rows, passes, lengths)
        return tasks[order], rows[order]

    def _bucketed(
        self, epoch: int, tasks: np.ndarray, rows: np.ndarray, passes: np.ndarray, lengths: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        """Return the order of an epoch's mixed rows in which each step holds rows of like length."""
        texts = max(one[:1].size for one in lengths)
        widths = np.zeros((len(tasks), texts), np.int64)
        for task in range(len(self.sizes)):
            places = np.flatnonzero(tasks == task)
            widths[places] = widths_of(lengths[task][rows[places]], texts)
        stream = np.random.default_rng([self.seed, _STEPS, epoch])
        # a strategy with a draw of its own says which tasks meet in a step
        turns = type(self.strategy).draw is not MixingStrategy.draw
        pieces = []
        for here in self._windows(len(tasks)):
            mine = tasks[here]
            order = self._in_turn(widths[here], mine, stream) if turns else self._steps_of(widths[here], stream)
            order = keep_walks(order, mine, passes[here], widths[here])
            if not turns:
                order = self._arranged(order, widths[here], np.stack([mine, passes[here]], 1))
            pieces.append(here.start + order)
        return np.concatenate(pieces)

    def _windows(self, rows: int) -> list[slice]:
        """Cut rows into windows of whole steps, as few and as even as ``bucket_steps`` allows."""
        steps = -(-rows // self.layout.step_rows)
        count = max(1, -(-steps // self.bucket_steps))
        ends = [steps * number // count * self.layout.step_rows for number in range(count + 1)]
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def _steps_of(self, widths: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        """Return an order of whole steps of rows; steps come at random, or a window would start with short rows."""
        steps = by_length(widths, self.layout.step_rows).reshape(-1, self.layout.step_rows)
        return steps[stream.permutation(len(steps))].ravel()

    def _arranged(self, order: np.ndarray, widths: np.ndarray, walks: np.ndarray | None = None) -> np.ndarray:
        """Return whole steps with the rows of each micro-batch alike; which rows a step has depends on no layout.

        Args:
            order: Of rows by place, [N].
            widths: Of each row, [N, K].
            walks: The number of each row's walk, of its own task; rows of a step in which one ends stay where they are.
        """
        if self.layout.batch_size == self.layout.step_rows or not len(order):
            return order
        steps = order.reshape(-1, self.layout.step_rows).copy()
        for step in steps:
            if walks is None or len(np.unique(walks[step], axis=0)) == len(np.unique(walks[step, 0])):
                step[:] = step[by_length(widths[step], self.layout.batch_size)]
        return steps.ravel()

    def _in_turn(self, widths: np.ndarray, tasks: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        """Return an order in which places keep their tasks, and each step gets the rows of one rank of every task."""
        rank = np.repeat(stream.permutation(len(tasks) // self.layout.step_rows), self.layout.step_rows)
        order = np.arange(len(tasks))
        for task in np.unique(tasks):
            mine = np.flatnonzero(tasks == task)
            places = mine[np.argsort(rank[mine], kind="stable")]
            order[places] = mine[np.argsort(widths[mine].sum(1), kind="stable")]
        return order

    def trained(self, steps: int) -> np.ndarray:
        """Return how many rows of each task the first ``steps`` optimizer steps of a run take."""
        total = np.zeros(len(self.sizes), np.int64)
        for epoch in range(-(-steps // self.steps)):
            taken = min(steps - epoch * self.steps, self.steps) * self.layout.step_rows
            # whole epochs take what is drawn for them; within one, mixed rows change places
            tasks = self.index(epoch)[0] if taken < self.rows else np.repeat(self.draws(epoch), self._rows_per_draw)
            total += np.bincount(tasks[:taken], minlength=len(self.sizes))
        return total

    def _order(self, task: int, passed: int) -> np.ndarray:
        """Return the order of a task's rows in its ``passed``-th walk through the data."""
        stream = np.random.default_rng([self.seed, _ROWS, task, passed])
        order = stream.permutation(self.sizes[task])
        if self.form != "one_task" or (lengths := self._buckets) is None:
            return order
        block, widths = self.layout.step_rows, widths_of(lengths[task], lengths[task][:1].size)
        # a walk begins within the step in which the last one ended; what both give to it is short, as the other's part
        # may be of any length
        head = min(-passed * len(order) % block, len(order))
        pieces: list[np.ndarray] = []
        if head:
            first, rest = np.split(order, [head + block * self.bucket_steps])
            short, first = _shortest(first, widths, head)
            pieces.append(short)
            order = np.concatenate([first, rest])
        for here in self._windows(len(order)) if len(order) else ():
            window = order[here]
            ending, window = _shortest(window, widths, len(window) % block)
            order_of_window = self._steps_of(widths[window], stream)
            pieces += [window[self._arranged(order_of_window, widths[window])], ending]
        return np.concatenate(pieces)


def _shortest(rows: np.ndarray, widths: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``count`` shortest rows and the others, both in the order in which they were."""
    chosen = np.argsort(widths[rows].sum(1), kind="stable")[:count]
    return rows[np.sort(chosen)], np.delete(rows, chosen)
