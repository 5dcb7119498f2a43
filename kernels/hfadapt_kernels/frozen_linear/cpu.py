"""frozen_linear through the C++ product."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu_tensors import as_rows, lacks_dtype, widen
from ..namespace import cpu_ops
from .int8_dynamic import DYNAMIC
from .packed import WEIGHT_TYPES

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype, packed: bool, torch_is_as_fast: bool) -> str | None:
    """Why the C++ product cannot serve the call; ``None`` when it can."""
    if lacks_dtype(dtype):
        return lacks_dtype(dtype)
    if torch_is_as_fast:
        return "torch's float32 product is as fast here (MKL on Intel, or few rows)"
    return None if packed else "the weight has no panels for this processor"


def forward(
    x: Tensor,
    weight: Tensor,
    panels: Tensor,
    panels_t: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    kind: str,
    activation: int,
    outliers: Tensor | None = None,
) -> Tensor:
    """See the schema."""
    return _product(x, panels, scale, bias, kind, weight.shape[0], activation, outliers)


def backward(grad: Tensor, weight: Tensor, panels_t: Tensor, kind: str, outliers: Tensor | None = None) -> Tensor:
    """See the schema; ``grad`` is multiplied with the int8 weights of ``int8_dynamic``, not rounded to int8 itself."""
    return _product(grad, panels_t, None, None, "int8" if kind == DYNAMIC else kind, weight.shape[1], 0)


def _product(
    x: Tensor,
    panels: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    kind: str,
    outputs: int,
    activation: int,
    outliers: Tensor | None = None,
) -> Tensor:
    """``activation((x W^T) * scale + bias)`` [..., outputs] from the panels of W."""
    rows = as_rows(widen(x))
    out = torch.empty(rows.shape[0], outputs, dtype=rows.dtype)
    bias = None if bias is None else bias.float().contiguous()
    if kind == DYNAMIC:
        cpu_ops.int8_linear_forward(rows, panels, scale, outliers, bias, activation, out)
    else:
        cpu_ops.frozen_linear_forward(rows, panels, WEIGHT_TYPES[kind], scale, bias, activation, out)
    out = out.view(*x.shape[:-1], outputs)
    return out.to(x.dtype)
