"""The errors of tensors and lists that do not fit, worded once for all ops; nothing here runs before one is raised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from .errors import KernelError, ShapeError

__all__ = ["batch_misfit", "count_misfit", "described", "input_misfit", "misfit", "nearest"]


def described(tensor: Tensor) -> str:
    """Dtype, shape and device of a tensor, for a message."""
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def nearest(name: object, names: Iterable[object], otherwise: str) -> str:
    """``"Did you mean 'x'?"`` for the nearest of ``names``, or what to do where none is near."""
    import difflib

    near = difflib.get_close_matches(str(name), [one for one in names if isinstance(one, str)], n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else otherwise


def _size(want: int | str, got: int) -> bool:
    return isinstance(want, str) or want == got


def _repair(name: str, tensor: Tensor, shape: Sequence[int | str], like: Tensor, otherwise: str) -> str:
    """The step that makes ``tensor`` fit, where one call does."""
    if tensor.device != like.device:
        return f"Use {name}.to({str(like.device)!r})."
    if tensor.dtype != like.dtype:
        return f"Use {name}.to({like.dtype})."
    sizes = tuple(tensor.shape)
    if len(sizes) == len(shape) == 2 and all(map(_size, shape, reversed(sizes))):
        return f"Use {name}.T, which has these sizes."
    fixed = [size for size in shape if isinstance(size, int)]
    if len(sizes) != len(shape) == len(fixed) and math.prod(fixed) == tensor.numel():
        return f"Use {name}.reshape({fixed}), which holds the same numbers."
    return otherwise


def misfit(
    op: str,
    name: str,
    tensor: Tensor,
    shape: Sequence[int | str],
    like: Tensor,
    otherwise: str,
    *,
    expected: str = "",
) -> ShapeError:
    """The error of a tensor that has not the shape, dtype and device that it should have.

    Args:
        op: Name of the op.
        name: Of the argument.
        tensor: What was given.
        shape: What it should have; a letter stands for any size.
        like: A tensor of the right dtype and device.
        otherwise: What to do where no cast and no reordering of its numbers helps.
        expected: The shape, where more than this is to be said of it.
    """
    wanted = f"{like.dtype} [{', '.join(map(str, shape))}] on {like.device}"
    hint = _repair(name, tensor, shape, like, otherwise)
    return ShapeError(op, name, expected=expected or wanted, got=described(tensor), hint=hint)


def input_misfit(op: str, name: str, tensor: Tensor, expected: str, least: int, most: int | None = None) -> ShapeError:
    """The error of an input with too few axes or too many, or without fractions.

    Args:
        op: Name of the op.
        name: Of the argument.
        tensor: What was given.
        expected: Its shape in letters.
        least: How many axes it has at least.
        most: And at most; as many where left out.
    """
    most, axes = most or least, tensor.dim()
    if not tensor.is_floating_point():
        hint = f"Use {name}.float()."
    elif axes < least:
        hint = f"Use {name}[{'None, ' * (least - axes)}...] where it is one row."
    else:
        hint = f"Use {name}.flatten(0, {axes - most}), with a task id for each of the rows that it makes."
    return ShapeError(op, name, expected=f"a floating-point {expected}", got=described(tensor), hint=hint)


def batch_misfit(op: str, name: str, rows: int, ids: int, *, expected: str = "") -> ShapeError:
    """The error of a `TaskBatch` of another number of rows than the input ``name``."""
    ways = f"TaskBatch.from_ids with {rows} ids, -1 for a row without a task"
    if ids > 0 and rows % ids == 0:
        ways = f"batch.expand({rows // ids}) where a model repeats its rows"
    elif ids > 0:
        ways += "; or batch.expand(repeats) where a model repeats its rows"
    return ShapeError(
        op,
        "batch",
        expected=expected or f"{rows} task ids, one a row of {name}",
        got=str(ids),
        hint=f"Use {ways}.",
    )


def count_misfit(
    op: str, what: str, lists: Mapping[str, int], tasks: int, *, expected: str, got: str = ""
) -> KernelError:
    """The error of lists that have not one tensor a task.

    Args:
        op: Name of the op.
        what: What is wrong, or the one list that is.
        lists: Length of each list.
        tasks: Of the batch.
        expected: Which lengths were.
        got: Which were there; worked out where left out.
    """
    lengths = set(lists.values())
    other = " and ".join(lists)
    if len(lengths) == 1 and len(lists) > 1:
        hint = f"Use TaskBatch.from_ids(ids, {lengths.pop()}) where all of these are tasks of the batch."
    else:
        off = [name for name, length in lists.items() if length != tasks]
        hint = f"Give {' and '.join(off) or other} as lists of {tasks}, in the order of the ids."
    return ShapeError(op, what, expected=expected, got=got or " and ".join(map(str, lists.values())), hint=hint)
