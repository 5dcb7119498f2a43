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
from ..misfits import batch_misfit, count_misfit, described, input_misfit, misfit

__all__ = ["check_arguments", "split_scale"]


def check_arguments(
    op: str, x: Tensor, y: Tensor | None, a: Sequence[Tensor], b: Sequence[Tensor], batch: TaskBatch
) -> None:
    """Raise `ShapeError` unless the arguments fit together. ``y`` may be anything that has the shape of the result."""
    if x.dim() < 2 or not x.is_floating_point():
        raise input_misfit(op, "x", x, "[B, ..., Din]", 2, x.dim())
    if len(a) != batch.num_tasks or len(b) != batch.num_tasks:
        wanted = f"one a and one b for each of the batch's {batch.num_tasks} tasks"
        raise count_misfit(op, "number of tasks", {"a": len(a), "b": len(b)}, batch.num_tasks, expected=wanted)
    if batch.batch_size != x.shape[0]:
        raise batch_misfit(op, "x", x.shape[0], batch.batch_size)
    din, dtype, device = x.shape[-1], x.dtype, x.device
    out = b[0].shape[0] if b and b[0].dim() == 2 else None
    for task in unlike(a, b):
        down, up = a[task], b[task]
        if down.dim() != 2 or down.shape[1] != din or down.dtype != dtype or down.device != device:
            raise misfit(op, f"a[{task}]", down, ("R", din), x, f"The last axis of x has {din} numbers: a reads it.")
        if up.dim() != 2 or up.shape != (out, down.shape[0]) or up.dtype != dtype or up.device != device:
            shape = ("O" if out is None else out, down.shape[0])
            raise misfit(op, f"b[{task}]", up, shape, x, f"R is that of a[{task}], and O is one for all tasks, b[0]'s.")
    if y is not None and (out is not None) and (y.shape != (*x.shape[:-1], out) or y.device != device):
        shape = (*x.shape[:-1], out)
        wanted = f"[{', '.join(map(str, shape))}] on {device}"
        cure = "Give as y what the linear computes from this x; b has as many rows as its weight."
        raise misfit(op, "y", y, shape, y if y.device == device else x, cure, expected=wanted)


def split_scale(
    op: str, scale: float | Sequence[float] | Sequence[Tensor], num_tasks: int, like: Tensor
) -> tuple[list[Tensor], list[float]]:
    """Learned factors (none, or one tensor of one element a task) and fixed ones (one a task) of ``scale``."""
    each: list[Any]
    each = list(scale) if isinstance(scale, (list, tuple, torch.nn.ParameterList)) else [scale] * num_tasks
    if len(each) != num_tasks:
        cure = "Give each task its factor, or all of them one number."
        raise ShapeError(op, "scale", expected=f"one number, or {num_tasks}", got=str(len(each)), hint=cure)
    if set(map(type, each)) <= {float, int} or not any(isinstance(value, Tensor) for value in each):
        require_finite(op, "scale", *each)
        return [], list(map(float, each))
    learned = [v if isinstance(v, Tensor) else like.new_tensor([float(v)]) for v in each]
    for task, value in enumerate(learned):
        if value.device != like.device:
            cure = f"Use scale[{task}].to({str(like.device)!r})."
            wanted = f"a number, or a tensor of one on {like.device}"
            raise ShapeError(op, f"scale[{task}]", expected=wanted, got=described(value), hint=cure)
        if value.numel() != 1 or not value.is_floating_point():
            cure = f"Use scale[{task}].float()."
            if value.numel() != 1:
                cure = f"Multiply it into b where it has a factor for each output: scale[{task}][:, None] * b[{task}]."
            raise ShapeError(
                op, f"scale[{task}]", expected="a number or a tensor of one", got=described(value), hint=cure
            )
    return learned, [1.0] * num_tasks
