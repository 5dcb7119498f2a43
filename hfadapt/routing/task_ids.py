"""Which adapter or task each row of a call belongs to, in every form in which a caller may say it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError, did_you_mean
from .composition import Composition
from .growth import Reach
from .lookup import looked_up, require_in_range
from .routing import all_tasks_take_part

__all__ = ["BASE", "TaskIds", "Together", "parse", "task_number", "task_rows"]

# What rows without an adapter may be called; None and -1 say the same.
BASE = "__base__"
_LISTED = "hfadapt.attachment(model).names lists the adapters"


@dataclass(frozen=True)
class TaskIds:
    """The number of every row, read once a call and handed down: every reading waits for the device.

    Args:
        uniform: The number of all rows, or None where they differ or nobody may look.
        ids: int64 ``[B]``, or None where ``uniform`` says it.
        listed: The same as numbers; None in a traced graph.
    """

    uniform: int | None
    ids: Tensor | None = None
    listed: tuple[int, ...] | None = None

    @property
    def present(self) -> tuple[int, ...] | None:
        """The numbers of the batch, sorted; None when all must take part, whether they have rows or not."""
        if all_tasks_take_part():
            return None
        if self.uniform is not None:
            return (self.uniform,)
        return None if self.listed is None else tuple(sorted(set(self.listed)))

    def tensor(self, size: int, device: torch.device) -> Tensor:
        """Return the numbers as int64 ``[B]``."""
        if self.ids is not None:
            return self.ids
        return torch.full((size,), self.uniform or 0, dtype=torch.int64, device=device)

    def through(self, table: Sequence[int]) -> TaskIds:
        """Return the rows' entries in a table with a number for each number; -1 stays."""

        def entry(number: int) -> int:
            return table[number] if number >= 0 else -1

        if self.uniform is not None:
            return TaskIds(entry(self.uniform))
        assert self.ids is not None
        listed = None if self.listed is None else tuple(entry(i) for i in self.listed)
        return TaskIds(None, looked_up(self.ids, table), listed)


@dataclass(frozen=True)
class Together(TaskIds):
    """The numbers of rows that all read the same: the call holds what they read once, and the batch grows on its way.

    Args:
        reaches: Where what each row goes through has deltas.
        trunk: Filled with what the layers below them gave, for later calls on the same input; see `Growth`.
    """

    reaches: tuple[Reach, ...] = ()
    trunk: dict[tuple[str, int], Any] | None = None

    def through(self, table: Sequence[int]) -> Together:
        """See `TaskIds.through`."""
        found = super().through(table)
        return replace(self, ids=found.ids, listed=found.listed)


def parse(
    task_ids: Any, names: Sequence[str], rows: int | None, device: torch.device | None, *, what: str = "adapter or task"
) -> TaskIds:
    """Read what a caller gave as ``task_ids``.

    Args:
        task_ids: An integer tensor or array ``[B]``, a sequence of names or numbers, or one name or number for all
            rows. ``None`` in a sequence, ``"__base__"`` and -1 stand for the base alone.
        names: What they may name; a number counts these.
        rows: B, or None where the call has no tensor to count.
        device: Of the rows.
        what: What the names are names of, for messages.

    Raises:
        RoutingError: an id is none of those, there is not exactly one a row, or a name or number is unknown.
    """
    if isinstance(task_ids, TaskIds):
        return task_ids
    if isinstance(task_ids, Tensor):
        if task_ids.dim() > 1 or task_ids.is_floating_point() or task_ids.is_complex() or task_ids.dtype == torch.bool:
            got = f"{task_ids.dtype} {list(task_ids.shape)}"
            raise RoutingError(
                "bad task_ids",
                where="task_ids",
                got=got,
                allowed="an integer tensor [B], or names",
                try_="task_ids.long(), one id a row",
            )
        if torch.compiler.is_compiling():
            ids = task_ids if task_ids.dim() else task_ids.expand(rows or 1)
            _check_count(ids.shape[0], rows)
            ids = ids.to(device, torch.int64)
            require_in_range(ids, len(names))
            return TaskIds(None, ids)
        given: Any = _as_list(task_ids)
    else:
        given = task_ids.tolist() if hasattr(task_ids, "tolist") else task_ids  # arrays and numbers of numpy
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        return TaskIds(_number(given, names, what))
    _check_count(len(given), rows)
    if given is not task_ids and (bad := sorted({n for n in given if isinstance(n, int) and not -1 <= n < len(names)})):
        raise RoutingError(
            f"unknown {what} {bad[0]}: task_ids out of range",
            where="task_ids",
            got=bad,
            allowed=_allowed(names, numbers=True),
            try_=_LISTED,
        )
    numbers = tuple(_number(one, names, what) for one in given)
    if len(set(numbers)) == 1 and not all_tasks_take_part():
        return TaskIds(numbers[0])  # one number lets the slots skip all sorting of rows
    if isinstance(task_ids, Tensor):
        return TaskIds(None, task_ids.to(device, torch.int64), numbers)
    return TaskIds(None, torch.tensor(numbers, dtype=torch.int64, device=device), numbers)


def _as_list(task_ids: Tensor) -> Any:
    """The numbers of a tensor.

    Raises:
        RoutingError: it is sparse, or has no numbers.
    """
    if task_ids.layout != torch.strided or task_ids.is_meta:
        raise RoutingError(
            "bad task_ids",
            where="task_ids",
            got="a tensor without numbers (meta)" if task_ids.is_meta else f"a tensor of layout {task_ids.layout}",
            allowed="a dense integer tensor [B], or names",
            try_="a list of names, or task_ids.to_dense()",
        )
    return task_ids.tolist()


def task_rows(task_ids: Any, names: Sequence[str], rows: int, device: torch.device) -> TaskIds:
    """Return the task of each row of a model whose rows all have one.

    Args:
        task_ids: See `parse`; a row without a task has no head.
        names: The tasks.
        rows: B.
        device: Of the rows.

    Raises:
        RoutingError: ``None``, an unknown task, a row without one, or not one a row.
    """
    if task_ids is None:
        raise RoutingError(
            "the model has several tasks and the call does not say which row is which",
            where="task_ids",
            got="no task_ids",
            allowed=", ".join(names),
            try_="task_ids=[...] with a name or number a row; hfadapt.TaskMixture.collator adds them",
        )
    found = parse(task_ids, names, rows, device, what="task")
    if -1 in ((found.uniform,) if found.uniform is not None else found.listed or ()):
        raise RoutingError(
            "a row has no task, and so no head",
            where="task_ids",
            got=task_ids,
            allowed=", ".join(names),
            try_="model.base(...)",
        )
    return found


def task_number(task: str | int, names: Sequence[str]) -> int:
    """Return the number of a task given by name or number.

    Raises:
        RoutingError: there is no such task.
    """
    number = _number(task, names, "task")
    if number < 0:
        raise RoutingError(
            "not a task",
            where="task",
            got=repr(task),
            allowed=_allowed(names),
            try_=_LISTED,
        )
    return number


def _number(given: Any, names: Sequence[str], what: str) -> int:
    if given is None or (isinstance(given, str) and given == BASE):
        return -1
    if isinstance(given, str):
        if given in names:
            return tuple(names).index(given)
        raise RoutingError(
            f"unknown {what} {given!r}",
            where="task_ids",
            got=repr(given),
            allowed=", ".join(names),
            try_=did_you_mean(given, names) or _LISTED,
        )
    number = _integer(given)
    if number is not None and -1 <= number < len(names):
        return number
    composed = "hfadapt.activate(model, ...) for all rows, or hfadapt.compose(model, name, ...) and that name"
    raise RoutingError(
        "bad task id" if number is None or what != "task" else f"unknown task {number}",
        where="task_ids",
        got=repr(given),
        allowed=_allowed(names),
        try_=composed if isinstance(given, Composition) else _LISTED,
    )


def _integer(given: Any) -> int | None:
    """Return an integer of any kind; None for what is none, truth values among them."""
    if isinstance(given, bool) or getattr(given, "dtype", None) in (torch.bool, "bool"):
        return None
    try:
        return operator.index(given)
    except (TypeError, ValueError, RuntimeError):
        return None


def _allowed(names: Sequence[str], *, numbers: bool = False) -> str:
    first = "" if numbers else "a name, or "
    return f"{first}0 to {len(names) - 1} ({', '.join(names)}); None, '{BASE}' or -1 for the base alone"


def _check_count(count: int, rows: int | None) -> None:
    if rows is not None and count != rows:
        raise RoutingError(
            "task_ids do not match the rows of the batch",
            where="task_ids",
            got=f"{count} task ids for {rows} rows",
            allowed="one id a row, or a single name or number (in no list) for all of them",
            try_="give every row of the batch its id",
        )
