"""Which task each row of a batch has, worked out once per forward and handed to every op."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import RowIdError, ShapeError

__all__ = ["Segment", "TaskBatch", "check_ids", "on_host", "segments_of", "tasks_with_rows"]


@dataclass(frozen=True)
class Segment:
    """The rows of one task.

    Attributes:
        task: Local index into the per-task lists; -1 for the rows that have none.
        rows: A slice where the rows are neighbours (indexing is then a view), else an int64 tensor, ascending.
    """

    task: int
    rows: slice | Tensor


def segments_of(ids: Sequence[int], device: torch.device | str = "cpu") -> list[Segment]:
    """Rows grouped by task, tasks ascending, -1 first; tasks without rows do not appear."""
    groups: dict[int, list[int]] = {}
    for row, task in enumerate(ids):
        groups.setdefault(task, []).append(row)
    segments = []
    for task in sorted(groups):
        rows = groups[task]
        neighbours = rows[-1] - rows[0] + 1 == len(rows)
        segments.append(
            Segment(task, slice(rows[0], rows[-1] + 1) if neighbours else torch.tensor(rows, device=device))
        )
    return segments


def on_host(ids: Tensor) -> bool:
    """Whether the numbers in ``ids`` can be looked at without waiting for a device."""
    return ids.device.type == "cpu"


def tasks_with_rows(ids: Tensor | None, num_tasks: int) -> list[bool]:
    """Which tasks get a gradient: one without a row must not move, not even by weight decay.

    All of them where looking at the ids would synchronise with a device or break a trace.
    """
    # Not torch.compiler.is_compiling(): it is False while a backward is traced.
    if ids is None or not on_host(ids) or type(ids) is not Tensor:
        return [True] * num_tasks
    seen = set(ids.tolist())
    return [task in seen for task in range(num_tasks)]


def check_ids(op: str, ids: Tensor | None, num_tasks: int) -> None:
    """Raise `RowIdError` for an id that is out of range; those of a device are asserted there, and nothing waits."""
    if ids is None:
        return
    if not on_host(ids):
        # The kernels behind this assertion would read the address of a tensor from beside a table.
        hint = f"{op}: a task id is neither -1 nor 0..{num_tasks - 1}; TaskBatch.from_ids(ids.cpu(), ...) names the row"
        torch._assert_async(((ids >= -1) & (ids < num_tasks)).all(), hint)
        return
    for row, task in enumerate(ids.tolist()):
        if not -1 <= task < num_tasks:
            raise RowIdError(
                op,
                f"ids[{row}] is out of range",
                expected=f"-1 (no task) or 0..{num_tasks - 1}" if num_tasks else "-1, for there are no tasks",
                got=str(task),
                hint="Use -1 for a row without a task."
                if task < 0
                else f"Use num_tasks={task + 1} where the lists given to the ops hold as many tasks.",
            )


def _whole_numbers(ids: Any) -> Tensor:
    """Ids as a tensor; a float is no id, even where it is whole."""
    try:
        return torch.tensor([operator.index(one) for one in ids], dtype=torch.int64)
    except TypeError:
        got = repr(ids)[:60]
        raise ShapeError(
            "TaskBatch", "ids", expected="whole numbers, one a row", got=got, hint="Use [0, 1, ...], -1 for no task."
        ) from None


def _moved(ids: Tensor, device: torch.device | str | None) -> Tensor:
    """``ids`` on ``device``; from pinned memory, so that nothing waits."""
    if device is None or torch.device(device).type == ids.device.type == "cpu":
        return ids
    pinned = ids.device.type == "cpu" and torch.device(device).type == "cuda"
    return (ids.pin_memory() if pinned else ids).to(device, non_blocking=True)


class TaskBatch:
    """The task of every row of a batch.

    Attributes:
        ids: int64 [B], local index into the per-task lists given to ops; -1 means that the row has none.
        num_tasks: Length of those lists.
        uniform: Known without looking at device memory that there is one task and every row has it.
        idle: Known without looking at device memory that some row has no task.
    """

    def __init__(self, ids: Tensor, num_tasks: int, *, uniform: bool = False, idle: bool = False) -> None:
        self.ids = ids
        self.num_tasks = num_tasks
        self.uniform = uniform
        self.idle = idle
        self._checked: tuple[int, bool] | None = None
        # Each with the state of the ids from which it was made.
        self._segments: tuple[Any, list[Segment]] | None = None
        self._expanded: dict[int, tuple[Any, TaskBatch]] = {}

    @classmethod
    def from_ids(
        cls, ids: Tensor | Sequence[int], num_tasks: int, *, device: torch.device | str | None = None
    ) -> TaskBatch:
        """Build from one id a row.

        Ids are checked here for CPU tensors and sequences, by a device-side assertion for other devices (no
        synchronisation), and by the ops themselves when this runs inside ``torch.compile``. So ids that are known on
        the CPU are best given from there, with the ``device`` on which the ops run.

        Args:
            ids: [B], integers; -1 for a row without a task.
            num_tasks: Length of the lists that the ops will be given.
            device: Where the ids go; where they are when ``None``.

        Raises:
            ShapeError: ``ids`` has not exactly one axis, or is not of an integer dtype.
            RowIdError: An id is below -1 or not below ``num_tasks``.
        """
        if not isinstance(ids, Tensor):
            ids = _whole_numbers(ids)
        numbers = not (ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool)
        if ids.dim() != 1 or not numbers or ids.layout != torch.strided or ids.is_meta:
            got = f"{ids.dtype} {list(ids.shape)}, {'meta' if ids.is_meta else ids.layout}"
            raise ShapeError("TaskBatch", "ids", expected="a dense integer tensor [B]", got=got, hint="Use ids.long().")
        ids = ids.to(torch.int64).contiguous()
        if torch.compiler.is_compiling():
            return cls(ids if device is None else ids.to(device), num_tasks)
        check_ids("TaskBatch", ids, num_tasks)
        uniform = idle = False
        if on_host(ids):
            values = ids.tolist()
            idle = -1 in values
            uniform = num_tasks == 1 and len(values) > 0 and not idle
        # A tensor of its own, so that what is worked out from it (the order of the rows) belongs to this batch alone.
        batch = cls(_moved(ids, device).detach(), num_tasks, uniform=uniform, idle=idle)
        batch._checked = batch._state()
        return batch

    @classmethod
    def single(cls, batch_size: int, device: torch.device | str = "cpu") -> TaskBatch:
        """All rows have task 0 of 1."""
        return cls(torch.zeros(batch_size, dtype=torch.int64, device=device), 1, uniform=True)

    @property
    def batch_size(self) -> int:
        """Number of rows B."""
        return self.ids.shape[0]

    @property
    def op_ids(self) -> Tensor | None:
        """What opaque ops take: ``None`` when uniform (the plain path), else the ids."""
        return None if self.uniform else self.ids

    def check(self, op: str, device: torch.device) -> None:
        """Raise in the name of ``op`` for ids that are not on its input's ``device``, or out of range.

        Ids are looked at once, by `from_ids` or here, and again after a change in place. What a captured graph replays
        may change too, so that it has an assertion of its own.

        Raises:
            ShapeError: The ids are on another device: a kernel would read their address as one of its own memory.
            RowIdError: An id is below -1 or not below ``num_tasks``.
        """
        if self.uniform or torch.compiler.is_compiling():
            return
        if self.ids.device != device:
            raise ShapeError(
                op,
                "ids of the batch",
                expected=f"task ids on {device}, where the input is",
                got=f"{len(self.ids)} on {self.ids.device}",
                hint=f"Use TaskBatch.from_ids(ids, {self.num_tasks}, device={str(device)!r}), or move the input.",
            )
        state = self._state()
        if state is None or state != self._checked:
            check_ids(op, self.ids, self.num_tasks)
            self._checked = state

    def _state(self) -> tuple[int, bool] | None:
        """What tells whether ids are still those that were looked at; ``None`` where torch counts no changes."""
        if self.ids.is_inference():
            return None
        recorded = self.ids.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        return self.ids._version, recorded

    def segments(self) -> list[Segment]:
        """Rows grouped by task (see `segments_of`), computed once. Not traceable: call it in eager code only."""
        state = self._state()
        if self._segments is None or state is None or self._segments[0] != state:
            if self.uniform:
                found = [Segment(0, slice(0, self.batch_size))] if self.batch_size else []
            else:
                found = segments_of(self.ids.tolist(), self.ids.device)
            self._segments = (state, found)
        return self._segments[1]

    def order(self) -> tuple[Tensor, Tensor]:
        """Rows sorted by task, and where each task starts, both on the device and traceable.

        Returns:
            ``rows`` int64 [B], stable order, rows without a task first, and ``starts`` int64 [num_tasks + 1]:
            the rows of task t are ``rows[starts[t]:starts[t + 1]]``.
        """
        rows = torch.argsort(self.ids, stable=True)
        counts = torch.zeros(self.num_tasks + 1, dtype=torch.int64, device=self.ids.device)
        counts = counts.scatter_add(0, self.ids + 1, torch.ones_like(self.ids))
        return rows, counts.cumsum(0)

    def expand(self, repeats: int) -> TaskBatch:
        """Every row ``repeats`` times in a row, as beams or a flattened [B * T] need it; cached."""
        if repeats == 1:
            return self
        state = None if torch.compiler.is_compiling() else self._state()
        kept = self._expanded.get(repeats)
        if kept is None or kept[0] != state:
            ids = self.ids.repeat_interleave(repeats)
            found = TaskBatch(ids, self.num_tasks, uniform=self.uniform, idle=self.idle)
            if state is not None and self._checked == state:
                found._checked = found._state()
            kept = self._expanded[repeats] = (state, found)
        return kept[1]

    def __repr__(self) -> str:
        return f"TaskBatch(batch_size={self.batch_size}, num_tasks={self.num_tasks}, uniform={self.uniform})"
