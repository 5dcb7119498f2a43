"""Which task and which rows each training step takes: a pure function of seed and epoch.

Nothing here has a state that could get lost: epoch ``e`` is drawn from the stream (seed, e), the order of a task's rows
from (seed, task, pass). All ranks compute the same lists, and a resumed run computes the lists it would have had.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import ConfigError
from .mixing import MixingStrategy, checked_probabilities

__all__ = ["BatchForm", "Layout", "Schedule"]

BatchForm = Literal["one_task", "mixed"]
# separates the stream of task draws from the streams of row orders
_DRAWS, _ROWS = 0, 1


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
        sizes: Training rows of each task.
        strategy: Says how likely each task is.
        form: ``one_task``: all rows of an optimizer step, over all ranks and accumulated micro-batches, are of one
            task; ``mixed``: each row is drawn on its own.
        layout: How rows fill a step.
        epoch_steps: Optimizer steps of an epoch; ``None`` for as many as all rows together fill.
        seed: Of all draws.
        lengths: Tokens of each row of each task, to put rows of like length into a step; ``None`` for random order.
        bucket_steps: How many steps' rows are sorted by length together.
    """

    sizes: tuple[int, ...]
    strategy: MixingStrategy
    form: BatchForm = "one_task"
    layout: Layout = field(default_factory=Layout)
    epoch_steps: int | None = None
    seed: int = 0
    lengths: tuple[np.ndarray, ...] | None = field(default=None, compare=False, repr=False)
    bucket_steps: int = 16

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

    def probabilities(self, epoch: int) -> np.ndarray:
        """Return the probability of each task in an epoch counted from 0."""
        epochs = self.layout.epochs
        return checked_probabilities(self.strategy, self.sizes, min(epoch + 1, epochs), epochs)

    def draws(self, epoch: int) -> np.ndarray:
        """Return the task of each draw of an epoch counted from 0: one a step, or one a row when mixed."""
        stream = np.random.default_rng([self.seed, _DRAWS, epoch])
        count = self._draws_per_epoch
        epochs = self.layout.epochs
        drawn = self.strategy.draw(self.sizes, min(epoch + 1, epochs), epochs, count, epoch * count, stream)
        known = isinstance(drawn, np.ndarray) and drawn.shape == (count,) and np.issubdtype(drawn.dtype, np.integer)
        if not known or (count and not 0 <= drawn.min() <= drawn.max() < len(self.sizes)):
            raise ConfigError(
                "a mixing strategy draws no tasks",
                where=f"{self.strategy!r}, epoch {epoch + 1}",
                got=f"{drawn.dtype} {list(drawn.shape)}" if isinstance(drawn, np.ndarray) else repr(drawn),
                allowed=f"an integer array of {count} task numbers, 0 to {len(self.sizes) - 1}",
            )
        return drawn

    def counts(self, epoch: int) -> np.ndarray:
        """Return how many rows of each task an epoch takes."""
        return np.bincount(self.draws(epoch), minlength=len(self.sizes)) * self._rows_per_draw

    def index(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return task and row of every example of an epoch counted from 0, int64 [rows] each.

        Each task walks through all its rows in a new random order before any row comes again, also across epochs.
        """
        tasks = np.repeat(self.draws(epoch), self._rows_per_draw)
        rows = np.empty_like(tasks)
        used = sum((self.counts(earlier) for earlier in range(epoch)), np.zeros(len(self.sizes), np.int64))
        for task, size in enumerate(self.sizes):
            places = np.flatnonzero(tasks == task)
            if not len(places):
                continue
            numbers = used[task] + np.arange(len(places))
            first, last = numbers[0] // size, numbers[-1] // size
            order = np.concatenate([self._order(task, passed) for passed in range(first, last + 1)])
            rows[places] = order[numbers - first * size]
        return tasks, rows

    def trained(self, steps: int) -> np.ndarray:
        """Return how many rows of each task the first ``steps`` optimizer steps of a run take."""
        total = np.zeros(len(self.sizes), np.int64)
        for epoch in range(-(-steps // self.steps)):
            taken = min(steps - epoch * self.steps, self.steps) * self.layout.step_rows // self._rows_per_draw
            total += np.bincount(self.draws(epoch)[:taken], minlength=len(self.sizes)) * self._rows_per_draw
        return total

    def _order(self, task: int, passed: int) -> np.ndarray:
        """Return the order of a task's rows in its ``passed``-th walk through the data."""
        stream = np.random.default_rng([self.seed, _ROWS, task, passed])
        order = stream.permutation(self.sizes[task])
        if self.lengths is None or self.form != "one_task" or self.bucket_steps <= 1:
            return order
        block = self.layout.step_rows
        length = self.lengths[task]
        pieces: list[np.ndarray] = []
        for start in range(0, len(order), block * self.bucket_steps):
            window = order[start : start + block * self.bucket_steps]
            window = window[np.argsort(length[window], kind="stable")]
            whole = len(window) // block * block
            blocks = window[:whole].reshape(-1, block)
            # steps come in random order, or every window would start with its shortest rows
            pieces += [blocks[stream.permutation(len(blocks))].ravel(), window[whole:]]
        return np.concatenate(pieces) if pieces else order
