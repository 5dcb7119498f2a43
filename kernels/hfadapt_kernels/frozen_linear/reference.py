"""frozen_linear in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import get_activation

__all__ = ["effective_weight", "frozen_linear_reference", "int8_scale"]


def int8_scale(weight: Tensor) -> Tensor:
    """Symmetric scale of each output row: ``max|w| / 127``, float32 [O]."""
    return (
        weight.detach().float().abs().amax(dim=1) / 127.0 if weight.shape[1] else weight.new_zeros(len(weight)).float()
    )


def effective_weight(weight: Tensor, dtype: str) -> Tensor:
    """The weight that a product of type ``dtype`` really multiplies with, in the weight's dtype [O, Din]."""
    if dtype == "float32":
        return weight
    if dtype == "bfloat16":
        return weight.to(torch.bfloat16).to(weight.dtype)
    scale = int8_scale(weight)[:, None]
    quantised = torch.where(scale > 0, (weight.float() / scale).round().clamp(-127, 127), 0.0)
    return (quantised * scale).to(weight.dtype)


def frozen_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dtype: str = "float32", activation: str | None = None
) -> Tensor:
    """``activation(x W^T + bias)`` with W as `effective_weight` leaves it, in ``x.dtype``."""
    w = effective_weight(weight, dtype).to(x.dtype)
    return get_activation(activation, "frozen_linear").fn(F.linear(x, w, None if bias is None else bias.to(x.dtype)))
