"""What inference on a processor asks for: the C++ kernel at once, which looks at every task's weights itself.

With a weight for each task, Python's checks of them take longer than a small op. Here Python looks at what does not
grow with the tasks. Whatever else is not as it should be the kernel refuses, and then the checks say what it is.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..namespace import cpu_ops
from ..unchecked import kernel_alone
from .schema import OP

__all__ = ["at_once"]


def at_once(x: Any, y: Any, a: Any, b: Any, scale: Any, batch: Any) -> Tensor | None:
    """Return the result of `grouped_lora` without dropout; None where the call is to be looked at first.

    Args:
        x: [B, ..., Din].
        y: [B, ..., O].
        a: One [R, Din] a task.
        b: One [O, R] a task.
        scale: One number a task.
        batch: Task of every row.
    """
    if not kernel_alone(OP, batch, (a, b), x, y) or type(scale) is not list or set(map(type, scale)) != {float}:
        return None
    factors = _factors(tuple(scale))
    fits = y.shape[:-1] == x.shape[:-1] and y.shape[-1:] == b[0].shape[:1] and len(scale) == batch.num_tasks
    if factors is None or not fits:
        return None
    batch.check(OP.name, x.device)
    with torch._C._AutoDispatchBelowAutograd():
        try:
            return cpu_ops.grouped_lora_add.default(x, y, a, b, factors, batch.op_ids)
        except (RuntimeError, TypeError):
            return None


@functools.lru_cache(maxsize=64)
def _factors(scale: tuple[float, ...]) -> Tensor | None:
    # an inference tensor would be one for good
    with torch.inference_mode(False):
        return torch.tensor(scale, dtype=torch.float32) if math.isfinite(sum(scale)) else None
