"""The rows of a batch in the order of their tasks, worked out once for all layers of a forward and their backward."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .tables import capturing, task_table

__all__ = ["Order", "task_order"]

Order = tuple[Tensor, Tensor]

# By the tensor of ids that a TaskBatch made for itself: with the batch the entry goes.
_ORDERS = WeakTensorKeyDictionary()
_BLOCK = 128


def task_order(device: torch.device, ids: Tensor | None, tasks: int, *, eager: bool, rows: int = 1) -> Order:
    """Rows sorted by task and where each task starts, as `TaskBatch.order` gives them, by one launch.

    Args:
        device: Where the kernels run.
        ids: int64 [B]; ``None``: all rows have task 0.
        tasks: How many there are.
        eager: Whether ``ids`` is a tensor of a `TaskBatch`. A compiled graph reuses its tensors for other numbers
            without saying so, and in a captured graph the numbers change from replay to replay: nothing is kept there.
        rows: How many there are where ``ids`` is None.
    """
    if ids is None:
        return task_table(device, range(rows)).view(-1), task_table(device, (0, rows)).view(-1)
    if not eager or capturing(device) or ids.is_inference():
        return _sort(ids, tasks)
    kept = _ORDERS.get(ids)
    # In-place changes are counted by torch.
    if kept is None or kept[0] != (ids._version, tasks):
        kept = _ORDERS[ids] = ((ids._version, tasks), _sort(ids, tasks))
    return kept[1]


def _sort(ids: Tensor, tasks: int) -> Order:
    from .order_kernel import order_kernel

    rows, starts = torch.empty_like(ids), ids.new_empty(tasks + 1)
    order_kernel[(tasks + 1,)](ids, rows, starts, len(ids), BLOCK=_BLOCK, num_warps=4)
    return rows, starts
