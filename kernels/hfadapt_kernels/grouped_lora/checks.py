"""What `grouped_lora` and `lora_linear` refuse, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import require_finite
from ..batch import TaskBatch
from ..calls import unlike
from ..errors import ShapeError

__all__ = ["check_arguments", "split_scale"]


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def check_arguments(
    op: str, x: Tensor, y: Tensor | None, a: Sequence[Tensor], b: Sequence[Tensor], batch: TaskBatch
) -> None:
    """Raise `ShapeError` unless the arguments fit together. ``y`` may be anything that has the shape of the result."""
    if x.dim() < 2 or not x.is_floating_point():
        raise ShapeError(op, "x", expected="a floating-point [B, ..., Din]", got=_describe(x))
    if len(a) != batch.num_tasks or len(b) != batch.num_tasks:
        raise ShapeError(
            op,
            "number of tasks",
            expected=f"one a and one b for each of the batch's {batch.num_tasks} tasks",
            got=f"{len(a)} and {len(b)}",
        )
    if batch.batch_size != x.shape[0]:
        raise ShapeError(
            op,
            "batch",
            expected=f"{x.shape[0]} task ids, one a row of x",
            got=str(batch.batch_size),
            hint="Use batch.expand(repeats) where a model repeats its rows.",
        )
    din, dtype, device = x.shape[-1], x.dtype, x.device
    out = b[0].shape[0] if b and b[0].dim() == 2 else None
    for task in unlike(a, b):
        down, up = a[task], b[task]
        if down.dim() != 2 or down.shape[1] != din or down.dtype != dtype or down.device != device:
            raise ShapeError(op, f"a[{task}]", expected=f"{dtype} [R, {din}] on {device}", got=_describe(down))
        if up.dim() != 2 or up.shape != (out, down.shape[0]) or up.dtype != dtype or up.device != device:
            wanted = f"{dtype} [{'O' if out is None else out}, {down.shape[0]}] on {device}"
            raise ShapeError(op, f"b[{task}]", expected=wanted, got=_describe(up))
    if y is not None and (out is not None) and (y.shape != (*x.shape[:-1], out) or y.device != device):
        raise ShapeError(op, "y", expected=f"[{', '.join(map(str, (*x.shape[:-1], out)))}]", got=_describe(y))


def split_scale(
    op: str, scale: float | Sequence[float] | Sequence[Tensor], num_tasks: int, like: Tensor
) -> tuple[list[Tensor], list[float]]:
    """Learned factors (none, or one tensor of one element a task) and fixed ones (one a task) of ``scale``."""
    each: list[Any]
    each = list(scale) if isinstance(scale, (list, tuple, torch.nn.ParameterList)) else [scale] * num_tasks
    if len(each) != num_tasks:
        raise ShapeError(op, "scale", expected=f"one number, or {num_tasks}", got=str(len(each)))
    if set(map(type, each)) <= {float, int} or not any(isinstance(value, Tensor) for value in each):
        require_finite(op, "scale", *each)
        return [], list(map(float, each))
    learned = [v if isinstance(v, Tensor) else like.new_tensor([float(v)]) for v in each]
    for task, value in enumerate(learned):
        if value.numel() != 1 or not value.is_floating_point():
            raise ShapeError(op, f"scale[{task}]", expected="a number or a tensor of one", got=_describe(value))
    return learned, [1.0] * num_tasks
