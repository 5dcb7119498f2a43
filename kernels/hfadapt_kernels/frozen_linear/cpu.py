"""frozen_linear through the C++ product."""

from __future__ import annotations

import torch
from torch import Tensor

from .packed import WEIGHT_TYPES

__all__ = ["product", "supports"]


def supports(*, device: str, dtype: torch.dtype, packed: bool, torch_is_as_fast: bool) -> str | None:
    """Why the C++ product cannot serve the call; ``None`` when it can."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no product for {dtype}"
    if torch_is_as_fast:
        return "torch's float32 product is as fast here (MKL on Intel without AMX, or few rows)"
    return None if packed else "the weight has no panels for this processor"


def product(
    x: Tensor, panels: Tensor, scale: Tensor | None, bias: Tensor | None, kind: str, outputs: int, activation: int
) -> Tensor:
    """``activation((x W^T) * scale + bias)`` [..., outputs] from the panels of W."""
    half = x.dtype == torch.float16
    rows = (x.float() if half else x).reshape(-1, x.shape[-1])
    if rows.shape[1] > 1 and rows.stride(1) != 1:
        rows = rows.contiguous()
    out = torch.empty(rows.shape[0], outputs, dtype=rows.dtype)
    bias = None if bias is None else bias.float().contiguous()
    torch.ops.hfadapt_cpu.linear_forward(rows, panels, WEIGHT_TYPES[kind], scale, bias, activation, out)
    out = out.view(*x.shape[:-1], outputs)
    return out.half() if half else out
