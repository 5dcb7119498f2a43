"""The weights of projected attention, named, and as the one flat list that the opaque op takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..misfits import count_misfit

__all__ = ["FAMILIES", "PalWeights", "flatten", "unflatten"]


class PalWeights(NamedTuple):
    """The weights of one task; biases and the output projection may be absent.

    Attributes:
        encoder: [S, D], down to the pal size.
        query: [S, S].
        key: [S, S].
        value: [S, S].
        decoder: [D, S], back up.
        output: [S, S], the projection W^o after the heads; the paper's PAL has none, its "top" attention has.
        encoder_bias: [S].
        query_bias: [S].
        key_bias: [S].
        value_bias: [S].
        decoder_bias: [D].
        output_bias: [S].
    """

    encoder: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    decoder: Tensor
    output: Tensor | None = None
    encoder_bias: Tensor | None = None
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    value_bias: Tensor | None = None
    decoder_bias: Tensor | None = None
    output_bias: Tensor | None = None


FAMILIES = PalWeights._fields


def flatten(op: str, families: Sequence[Sequence[Tensor] | None], tasks: int) -> tuple[list[Tensor], list[bool]]:
    """All tensors, family after family in the order of `FAMILIES`, and which families are there.

    Raises:
        ShapeError: A family has not one tensor a task.
    """
    flat: list[Tensor] = []
    for name, tensors in zip(FAMILIES, families, strict=True):
        if tensors is not None and len(tensors) != tasks:
            wanted = f"one tensor for each of the batch's {tasks} tasks"
            raise count_misfit(op, name, {name: len(tensors)}, tasks, expected=wanted)
        flat += [] if tensors is None else list(tensors)
    return flat, [tensors is not None for tensors in families]


def unflatten(flat: Sequence[Tensor], present: Sequence[bool]) -> list[PalWeights]:
    """The inverse of `flatten`, one `PalWeights` a task."""
    tasks = len(flat) // max(sum(present), 1)
    columns: list[Sequence[Tensor | None]] = []
    start = 0
    for here in present:
        columns.append(flat[start : start + tasks] if here else [None] * tasks)
        start += tasks if here else 0
    return [PalWeights(*row) for row in zip(*columns, strict=True)]  # type: ignore[arg-type]
