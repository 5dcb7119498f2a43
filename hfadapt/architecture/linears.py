"""What counts as a linear leaf or as a table of vectors, and their sizes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class _Sized(Protocol):
    in_features: int
    out_features: int


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map over the last axis: Linear, Conv1D, a quantised form or a subclass of them."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() > 2:
        return False
    name = type(module).__name__.lower()
    if "grouped" in name:  # one weight for each of several parts of the input
        return False
    return name.endswith(("linear", "conv1d", "linear4bit", "linear8bitlt")) or isinstance(module, nn.Linear)


def is_table(module: nn.Module) -> bool:
    """Whether a module looks vectors up by ids, and does no more with them than to multiply all by one number."""
    if not isinstance(module, nn.Embedding) or module.max_norm is not None or module.sparse:
        return False
    return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """Input and output features; transformers' Conv1D keeps its weight as [in, out], as a table of vectors does."""
    if isinstance(module, _Sized):
        return module.in_features, module.out_features
    rows, columns = module.get_parameter("weight").shape
    return rows, columns
