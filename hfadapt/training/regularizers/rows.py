"""Which rows of a batch have which regularizer, where tasks have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .regularizer import Regularizer

__all__ = ["Group", "groups_of", "selected"]


class Group(NamedTuple):
    """Rows with one regularizer.

    Args:
        regularizer: Theirs; None for plain training.
        rows: Which rows, int64; None for all of the batch.
        numbers: The same as a list.
        share: Of the batch.
    """

    regularizer: Regularizer | None
    rows: Tensor | None
    numbers: Sequence[int]
    share: float


def groups_of(module: nn.Module, inputs: Mapping[str, Any], of_tasks: Mapping[int | None, Regularizer]) -> list[Group]:
    """Return the groups of a batch, those without a regularizer first."""
    first = next(v for v in inputs.values() if isinstance(v, Tensor) and v.dim())
    size = first.shape[0]

    def active(task: int | None) -> Regularizer | None:
        one = of_tasks.get(task)
        return one if one is not None and one.weight else None

    if None in of_tasks:
        return [Group(active(None), None, range(size), 1.0)]
    model: Any = module
    tasks = model.tasks_of(inputs.get("task_ids"), size, first.device).tensor(size, first.device).tolist()
    found: dict[Regularizer | None, list[int]] = {}
    for row, task in enumerate(tasks):
        found.setdefault(active(task), []).append(row)
    if len(found) == 1:
        return [Group(next(iter(found)), None, range(size), 1.0)]
    order = sorted(found.items(), key=lambda one: (one[0] is not None, one[1][0]))
    return [Group(one, torch.tensor(rows, device=first.device), rows, len(rows) / size) for one, rows in order]


def selected(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Return the inputs of some rows; what is not one value a row stays as it is."""
    size = next(v for v in inputs.values() if isinstance(v, Tensor) and v.dim()).shape[0]
    numbers = rows.tolist()

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.index_select(0, rows) if value.dim() and value.shape[0] == size else value
        if isinstance(value, (list, tuple)) and len(value) == size:
            return [value[row] for row in numbers]
        return value

    return {name: pick(value) for name, value in inputs.items()}
