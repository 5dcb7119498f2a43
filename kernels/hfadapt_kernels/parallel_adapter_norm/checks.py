"""Argument checks of parallel_adapter_norm: every message names the argument, what was expected and what was got."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ..arguments import require_finite
from ..batch import TaskBatch
from ..calls import unlike
from ..errors import ShapeError, UnsupportedError
from ..misfits import batch_misfit, count_misfit, input_misfit, misfit, nearest

__all__ = ["NAME", "NORMS", "check", "split_scale", "unknown_norm"]

NAME = "parallel_adapter_norm"
NORMS = {None: 0, "layer": 1, "rms": 2}
# Where the sizes that a message names come from.
_SIZES = "D is the last axis of x, Dh that of h, and R the first of each task's own down."


def split_scale(
    scale: float | Sequence[float] | Sequence[Tensor], tasks: int, width: int
) -> tuple[list[Tensor], list[float]]:
    """Scales as tensors (learned) or as numbers (fixed); exactly one of the two lists has entries."""
    if isinstance(scale, Tensor):
        scale = [scale] * tasks if tasks == 1 else list(scale.unbind(0))
    values: list[Any] = list(scale) if isinstance(scale, Iterable) else [scale] * tasks
    if len(values) != tasks:
        cure = "Give each task its factor, or all of them one number."
        raise ShapeError(
            NAME, "scale", expected=f"one number or {tasks} entries", got=f"{len(values)} entries", hint=cure
        )
    if set(map(type, values)) <= {float, int}:
        require_finite(NAME, "scale", *values)
        return [], list(map(float, values))
    tensors = [value.reshape(1) if value.dim() == 0 else value for value in values if isinstance(value, Tensor)]
    if tensors and len(tensors) == tasks:
        for task, value in enumerate(tensors):
            _shape(f"scale[{task}]", value, (1,) if value.numel() == 1 else (width,))
        return tensors, []
    if tensors:
        raise UnsupportedError(
            NAME,
            "scale mixes numbers and tensors",
            expected="all numbers or all tensors",
            got=", ".join(type(value).__name__ for value in values),
            hint="Use torch.tensor([s]) for each number s.",
        )
    require_finite(NAME, "scale", *values)
    return [], list(map(float, values))


def check(
    x: Tensor,
    h: Tensor,
    down: Sequence[Tensor],
    up: Sequence[Tensor],
    down_bias: Sequence[Tensor],
    up_bias: Sequence[Tensor],
    scale: Sequence[Tensor],
    batch: TaskBatch,
    residual: Tensor | None,
    norm: str | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> None:
    """Refuse shapes, dtypes and devices that do not fit together."""
    if x.dim() < 2 or not x.is_floating_point():
        raise input_misfit(NAME, "x", x, "tensor [B, ..., D]", 2, x.dim())
    if h.shape[:-1] != x.shape[:-1]:
        wanted = f"{list(x.shape[:-1])} + [Dh] as x"
        cure = "Give h of the same rows and tokens as x: their last axes alone may differ."
        raise misfit(NAME, "h", h, (*x.shape[:-1], "Dh"), h, cure, expected=wanted)
    if batch.batch_size != x.shape[0]:
        raise batch_misfit(NAME, "x", x.shape[0], batch.batch_size)
    if norm not in NORMS:
        raise unknown_norm(norm)
    if norm is None and (norm_weight is not None or norm_bias is not None):
        named = [name for name, one in (("norm_weight", norm_weight), ("norm_bias", norm_bias)) if one is not None]
        raise UnsupportedError(
            NAME,
            "norm_weight and norm_bias need a norm",
            expected="norm='layer' or 'rms'",
            got=f"norm=None with {' and '.join(named)}",
            hint="Use 'layer' for the weight and bias of a torch.nn.LayerNorm, or leave both out.",
        )
    tasks, width, inner = batch.num_tasks, x.shape[-1], h.shape[-1]
    lists = {"down": down, "up": up, "down_bias": down_bias, "up_bias": up_bias}
    for name, tensors in lists.items():
        if len(tensors) != tasks and (tensors or not name.endswith("bias")):
            raise count_misfit(NAME, name, {name: len(tensors)}, tasks, expected=f"one tensor a task ({tasks})")
    named = [("h", h), ("residual", residual), ("norm_weight", norm_weight), ("norm_bias", norm_bias)]
    given = {name: tensors for name, tensors in {**lists, "scale": scale}.items() if tensors}
    for t in unlike(*given.values()) if tasks else ():
        rank = down[t].shape[0] if down[t].dim() else 0
        if rank < 1:
            wanted = f"[R, {inner}] with R >= 1"
            raise misfit(NAME, f"down[{t}]", down[t], ("R", inner), down[t], _SIZES, expected=wanted)
        _shape(f"down[{t}]", down[t], (rank, inner))
        _shape(f"up[{t}]", up[t], (width, rank))
        if down_bias:
            _shape(f"down_bias[{t}]", down_bias[t], (rank,))
        if up_bias:
            _shape(f"up_bias[{t}]", up_bias[t], (width,))
        named += [(name, tensors[t]) for name, tensors in given.items()]
    for name, tensor, shape in (
        ("residual", residual, tuple(x.shape)),
        ("norm_weight", norm_weight, (width,)),
        ("norm_bias", norm_bias, (width,)),
    ):
        if tensor is not None:
            _shape(name, tensor, shape)
    for name, tensor in named:
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            got, cure = f"{tensor.dtype} on {tensor.device}", f"Use {name}.to({str(x.device)!r}, {x.dtype})."
            raise ShapeError(NAME, name, expected=f"{x.dtype} on {x.device} as x", got=got, hint=cure)


def _shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise misfit(NAME, name, tensor, shape, tensor, _SIZES, expected=str(list(shape)))


def unknown_norm(norm: object) -> UnsupportedError:
    """The error of a norm that the op does not compute."""
    cure = nearest(norm, NORMS, "Use norm=None, and apply the norm of the model to the result.")
    return UnsupportedError(NAME, "norm", expected="None, 'layer' or 'rms'", got=repr(norm), hint=cure)
