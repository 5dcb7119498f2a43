"""What runs without a compiler: torch's own product with the weight as the packed type leaves it."""

from __future__ import annotations

from torch import Tensor

from ..activations import get_activation
from .reference import effective_weight, frozen_linear_reference

__all__ = ["backward", "forward"]


def forward(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    panels_t: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    kind: str,
    activation: int,
    outliers: Tensor | None = None,
) -> Tensor:
    """See the schema. An activation whose gradient needs its input is applied by the caller, who asks for none."""
    name = get_activation(activation).name
    return frozen_linear_reference(x, weight, bias, dtype=kind, activation=name, outliers=outliers)


def backward(
    grad: Tensor, weight: Tensor, panels_t: Tensor | None, kind: str, outliers: Tensor | None = None
) -> Tensor:
    """See the schema."""
    return grad @ effective_weight(weight, kind, outliers).to(grad.dtype)
