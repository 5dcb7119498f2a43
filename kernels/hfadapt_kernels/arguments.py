"""What every op asks of its arguments before it computes: that tensors are tensors, and numbers are numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .batch import TaskBatch
from .errors import ShapeError

__all__ = ["require_finite", "require_tensors"]

_PLAIN = {Tensor, nn.Parameter}


def require_tensors(op: str, names: tuple[str, ...], *values: Any) -> None:
    """Raise `ShapeError` unless every value is a dense real tensor with numbers, or a sequence of such.

    Args:
        op: For the error.
        names: Of the values; one that ends in ``?`` may be ``None``, and ``batch`` is a `TaskBatch`.
        values: The arguments.
    """
    if torch.compiler.is_compiling():
        return
    for name, value in zip(names, values, strict=True):
        if type(value) in _PLAIN:
            if value.layout is not torch.strided or value.is_meta or not value.dtype.is_floating_point:
                _refuse(op, name, value)
        elif name == "batch":
            if not isinstance(value, TaskBatch):
                _refuse(op, name, value, "a TaskBatch", "TaskBatch.from_ids([0, 1, ...], num_tasks)")
        elif value is None:
            if name[-1] != "?":
                _refuse(op, name, value)
        elif isinstance(value, Tensor):
            if value.layout is not torch.strided or not value.dtype.is_floating_point:
                _refuse(op, name, value)
        elif isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple, Sequence, nn.ParameterList)):
            _refuse(op, name, value)
        else:
            for task, one in enumerate(value):
                if not isinstance(one, Tensor) or one.layout is not torch.strided or one.is_meta:
                    _refuse(op, f"{name.removesuffix('?')}[{task}]", one)
                if not one.dtype.is_floating_point:
                    _refuse(op, f"{name.removesuffix('?')}[{task}]", one)


def _refuse(op: str, name: str, value: Any, expected: str = "", hint: str = "") -> NoReturn:
    got, named = repr(value)[:60], name.removesuffix("?")
    cure = f"Give {named} as a torch.Tensor."
    if isinstance(value, Tensor):
        cure = (
            "Give a tensor in memory: model.to_empty(device='cpu') makes those of a meta model."
            if value.is_meta
            else f"Use {named}.to_dense()."
            if value.layout is not torch.strided
            else f"Use {named}.real."
            if value.dtype.is_complex
            else f"Use {named}.float()."
        )
        kind = "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
        got = f"{value.dtype} of {kind} layout, {list(value.shape)}"
    raise ShapeError(
        op,
        f"{named} is not what it should be",
        expected=expected or "a dense tensor of real numbers (or one a task)",
        got=got,
        hint=hint or cure,
    )


def require_finite(op: str, name: str, *values: Any) -> None:
    """Raise `ShapeError` unless every value is a finite number."""
    try:
        if math.isfinite(sum(values)):
            return
    except TypeError:
        pass
    for value in values:
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ShapeError(
                op, f"{name} is no finite number", expected="a finite number", got=repr(value)[:60], hint="Try 1.0."
            )
