"""Running any computation on each adapter's own rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hfadapt.routing import all_tasks_take_part
from hfadapt_kernels import TaskBatch

__all__ = ["change_rows"]

Pick = Callable[[Tensor], Tensor]


def _every_row(tensor: Tensor) -> Tensor:
    return tensor


def change_rows(batch: TaskBatch, value: Tensor, compute: Callable[[int, Pick], Tensor]) -> Tensor:
    """Replace each adapter's rows of ``value``; rows without an adapter stay bit for bit.

    For deltas that no kernel serves. Rows are sorted by adapter, so that each adapter computes once, on its rows only.

    Args:
        batch: Which adapter each row uses.
        value: ``[B, ...]``.
        compute: Called with an adapter's index in ``batch`` and a function that picks that adapter's rows of any
            tensor whose first axis is the batch; returns the new rows of ``value``.
    """
    if batch.uniform:
        return compute(0, _every_row)
    if torch.compiler.is_compiling():  # rows cannot be sorted while tracing: compute all, keep each row's own
        for index in range(batch.num_tasks):
            mine = (batch.ids == index).view(-1, *(1,) * (value.dim() - 1))
            value = torch.where(mine, compute(index, _every_row).to(value.dtype), value)
        return value
    parts, places, seen = [], [], set()
    for segment in batch.segments():
        if segment.task < 0:
            continue
        seen.add(segment.task)
        mine = segment.rows
        if isinstance(mine, slice):
            mine = torch.arange(mine.start, mine.stop, device=value.device)
        parts.append(compute(segment.task, _Picker(mine)).to(value.dtype))
        places.append(mine)
    if all_tasks_take_part():  # data-parallel ranks agree on who has a gradient: idle adapters get one of zeros
        none = torch.empty(0, dtype=torch.int64, device=value.device)
        for index in set(range(batch.num_tasks)) - seen:
            parts.append(compute(index, _Picker(none)).to(value.dtype))
            places.append(none)
    return value.index_copy(0, torch.cat(places), torch.cat(parts)) if parts else value


class _Picker:
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(0, self.rows)
