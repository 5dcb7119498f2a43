"""Which task each row of a call belongs to, in every form in which a caller may say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import RoutingError, did_you_mean, problem
from .routing import all_tasks_take_part

__all__ = ["find_task_ids", "task_number"]


def find_task_ids(
    task_ids: Any, names: Sequence[str], size: int, device: torch.device
) -> tuple[Tensor, tuple[int, ...] | None]:
    """Return the task of each row, int64 [B], and the tasks present; ``None`` when all tasks must take part.

    Args:
        task_ids: An integer tensor [B] or [], names or numbers a row, or one for all rows.
        names: The tasks.
        size: B.
        device: Of the inputs.

    Raises:
        RoutingError: ``None`` with several tasks, an unknown task, or not one a row.
    """
    if task_ids is None and len(names) == 1:
        task_ids = 0
    if task_ids is None:
        raise RoutingError(
            problem(
                "the model has several tasks and the call does not say which row is which",
                allowed=", ".join(names),
                try_="task_ids=[...] with a name or number a row; hfadapt.TaskMixture.collator adds them",
            )
        )
    if isinstance(task_ids, Tensor):
        ids = task_ids.expand(size) if task_ids.dim() == 0 else task_ids
        if ids.shape != (size,):
            raise RoutingError(problem("task_ids do not match the batch", got=list(ids.shape), allowed=[size]))
        if torch.compiler.is_compiling():
            return ids, None
        listed = ids.tolist()
    else:
        one = isinstance(task_ids, (str, int))
        listed = [task_number(task_ids, names)] * size if one else [task_number(task, names) for task in task_ids]
        if len(listed) != size:
            raise RoutingError(
                problem("task_ids do not match the batch", got=f"{len(listed)} ids", allowed=f"{size} rows")
            )
        ids = torch.tensor(listed, dtype=torch.long, device=device)
    present = tuple(sorted(set(listed)))
    for task in present:
        task_number(task, names)
    return ids, None if all_tasks_take_part() else present


def task_number(task: str | int, names: Sequence[str]) -> int:
    """Return the number of a task given by name or number.

    Raises:
        RoutingError: there is no such task.
    """
    if isinstance(task, str) and task in names:
        return names.index(task)
    if isinstance(task, int) and 0 <= task < len(names):
        return task
    raise RoutingError(
        problem(
            f"unknown task {task!r}",
            allowed=f"{', '.join(names)} (0..{len(names) - 1})",
            try_=did_you_mean(str(task), names),
        )
    )
