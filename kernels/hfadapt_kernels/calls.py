"""What an op hands to its backends: one `NamedTuple` a direction, whose fields are the arguments of the op's schema.

``torch.library`` passes arguments by position. Their names and types are spelled once, in the NamedTuple; the schema's
text and what a backend reads follow from it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

__all__ = ["arguments_of", "keep", "kept", "takes", "unlike"]

_FORM = operator.attrgetter("shape", "dtype", "device")

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    list[float]: "float[]",
    list[bool]: "bool[]",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
}


def arguments_of(call: type[NamedTuple]) -> str:
    """The arguments of a schema, for example ``Tensor x, Tensor? y, float[] scale``, from a NamedTuple's fields."""
    return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in get_type_hints(call).items())


def takes(call: type[Any]) -> Callable[[Callable[[Any], Any]], Callable[..., Any]]:
    """Lets a function of one ``call`` be called as ``torch.library`` calls it, with the fields by position."""

    def decorate(function: Callable[[Any], Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def by_position(*arguments: Any) -> Any:
            return function(call(*arguments))

        return by_position

    return decorate


def unlike(*weights: Sequence[Tensor]) -> Iterable[int]:
    """Of tasks whose weights agree in shape, dtype and device the first: what is true of it, is true of all of them.

    Args:
        weights: Lists with a tensor a task.
    """
    if torch.compiler.is_compiling():
        return range(len(weights[0]))
    first: dict[Any, int] = {}
    for task, form in enumerate(zip(*(map(_FORM, tensors) for tensors in weights), strict=True)):
        if form not in first:
            first[form] = task
    return first.values()


def keep(ctx: Any, **values: Any) -> None:
    """Save what the backward reads: tensors, also in lists, where autograd watches them, the rest as it is."""
    tensors: list[Tensor] = []
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = _ONE
            tensors.append(value)
        elif type(value) is list and value and isinstance(value[0], Tensor):
            values[name] = _Many(len(value))
            tensors.extend(value)
    ctx.save_for_backward(*tensors)
    ctx.kept = values


def kept(ctx: Any) -> dict[str, Any]:
    """What `keep` saved, by name."""
    tensors, at = ctx.saved_tensors, 0
    values = dict(ctx.kept)
    for name, value in values.items():
        if value is _ONE:
            values[name] = tensors[at]
            at += 1
        elif type(value) is _Many:
            values[name] = list(tensors[at : at + value.count])
            at += value.count
    return values


class _Many(NamedTuple):
    """Stands where a list of tensors stood."""

    count: int


_ONE = _Many(1)
