"""Which tasks' metrics one average may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .metrics import find_metric

if TYPE_CHECKING:
    from .task import Task

__all__ = ["Macro", "macro_of"]


@dataclass(frozen=True)
class Macro:
    """The mean of the first metrics of those tasks whose metrics measure alike.

    Args:
        tasks: Those that count.
        greater_is_better: Their metrics' direction, and so the average's.
        left_out: Each other task's name, and why.
    """

    tasks: tuple[str, ...] = ()
    greater_is_better: bool = True
    left_out: Mapping[str, str] = field(default_factory=dict)

    def average(self, values: Mapping[str, float]) -> float | None:
        """The mean over the tasks that count and have a value; ``None`` where none has.

        Args:
            values: Task to the value of its first metric; NaN stays NaN.
        """
        found = [values[task] for task in self.tasks if task in values]
        return sum(found) / len(found) if found else None

    def describe(self) -> str:
        """What the average holds and what it leaves out, in words."""
        direction = "" if self.greater_is_better else " (lower is better)"
        left = "; ".join(f"{task} is left out: {reason}" for task, reason in self.left_out.items())
        return f"macro{direction}: mean over {', '.join(self.tasks) or 'no task'}{f'; {left}' if left else ''}"


def macro_of(tasks: Sequence[Task]) -> Macro:
    """Choose the largest group of tasks whose first metrics can be averaged (of several, one with
    bounded metrics, then the first).

    Metrics can be averaged when they are the same, or when all are bounded and have the same direction and the same
    best value: accuracy, F1 and correlations, but no squared error, whose size depends on the labels' unit.
    """
    groups: dict[tuple[object, ...], list[Task]] = {}
    for task in tasks:
        if task.metrics:
            groups.setdefault(find_metric(task.metrics[0]).scale, []).append(task)
    if not groups:
        return Macro()
    # of groups as large as one another, the one whose metrics are bounded
    chosen = max(groups.values(), key=lambda group: (len(group), len(find_metric(group[0].metrics[0]).scale)))
    first = find_metric(chosen[0].metrics[0])
    left_out = {task.name: "it has no metric" for task in tasks if not task.metrics}
    for group in groups.values():
        if group is not chosen:
            left_out.update({task.name: find_metric(task.metrics[0]).differs_from(first) for task in group})
    return Macro(tuple(task.name for task in chosen), first.greater_is_better, left_out)
