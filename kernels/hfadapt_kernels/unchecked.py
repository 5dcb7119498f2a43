"""When the C++ kernel of an op is called at once, and Python's checks of every task's weights are left to it.

With a weight for each task they take longer than a small op. Here is what does not grow with the tasks, or is looked at
without a call of Python's for each.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .batch import TaskBatch
from .direct import unobserved

if TYPE_CHECKING:
    from .backend import FusedOp

__all__ = ["kernel_alone"]

_DTYPE = operator.attrgetter("dtype")


def kernel_alone(op: FusedOp, batch: Any, weights: Sequence[Any], *rows: Any) -> bool:
    """Whether the C++ kernel of ``op`` may be called at once: nobody watches, and what every call has is in order.

    The kernel checks shapes of the weights, and refuses what is not on its device or has another layout.

    Args:
        op: The op.
        batch: Task of every row.
        weights: Lists with a tensor a task.
        rows: Tensors [B, ...].
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if not isinstance(batch, TaskBatch):
        return False
    if not all(isinstance(one, Tensor) for one in rows) or not all(type(each) is list for each in weights):
        return False
    if not unobserved((*rows, *weights)) or not batch.num_tasks:
        return False
    dtype, size = rows[0].dtype, batch.batch_size
    for one in rows:
        if one.device.type != "cpu" or one.dtype != dtype or one.dim() < 2 or one.shape[0] != size:
            return False
    for each in weights:
        if len(each) != batch.num_tasks or set(map(_DTYPE, each)) != {dtype}:
            return False
    return dtype in (torch.float32, torch.bfloat16) and op.select("cpu", dtype).backend == "cpu"
