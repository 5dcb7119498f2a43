"""What counts as a linear leaf, and its sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class _Sized(Protocol):
    in_features: int
    out_features: int


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map over the last axis: Linear, Conv1D or a quantised form of them."""
    weight = getattr(module, "weight", None)
    name = type(module).__name__.lower()
    return (
        weight is not None and name.endswith(("linear", "conv1d", "linear4bit", "linear8bitlt")) and weight.dim() <= 2
    )


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """Input and output features; transformers' Conv1D keeps its weight as [in, out]."""
    if isinstance(module, _Sized):
        return module.in_features, module.out_features
    rows, columns = module.get_parameter("weight").shape
    return rows, columns
