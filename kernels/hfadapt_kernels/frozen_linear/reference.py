"""frozen_linear in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import get_activation
from .int8_dynamic import DYNAMIC, dynamic_product, int8_scale, quantised

__all__ = ["effective_weight", "frozen_linear_reference", "int8_scale"]


def effective_weight(weight: Tensor, dtype: str, outliers: Tensor | None = None) -> Tensor:
    """The weight that a product of type ``dtype`` really multiplies with, in the weight's dtype [O, Din].

    Args:
        weight: [O, Din].
        dtype: A packed type.
        outliers: Of ``int8_dynamic``: the columns that stay as they are.
    """
    if dtype == "float32":
        return weight
    if dtype == "bfloat16":
        return weight.to(torch.bfloat16).to(weight.dtype)
    if dtype == DYNAMIC:
        q, scale = quantised(weight, outliers)
        w = (q.float() * scale[:, None]).to(weight.dtype)
        return w if outliers is None else w.index_copy(1, outliers, weight.detach()[:, outliers])
    scale = int8_scale(weight)[:, None]
    quantised_weight = torch.where(scale > 0, (weight.float() / scale).round().clamp(-127, 127), 0.0)
    return (quantised_weight * scale).to(weight.dtype)


def frozen_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: str = "float32",
    activation: str | None = None,
    outliers: Tensor | None = None,
) -> Tensor:
    """``activation(x W^T + bias)`` with W as `effective_weight` leaves it, in ``x.dtype``.

    With ``int8_dynamic`` the rows of x are rounded too. The gradient takes no notice of that: it is that of the product
    with the effective weight (Bengio et al. 2013, arXiv:1308.3432, "straight-through").
    """
    act = get_activation(activation, "frozen_linear").fn
    if dtype != DYNAMIC:
        w = effective_weight(weight, dtype).to(x.dtype)
        return act(F.linear(x, w, None if bias is None else bias.to(x.dtype)))
    y = dynamic_product(x, weight, outliers, bias)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        w = effective_weight(weight, dtype, outliers).to(x.dtype)
        through = F.linear(x, w, None if bias is None else bias.to(x.dtype))
        y = y + (through - through.detach()).float()
    return act(y).to(x.dtype)
