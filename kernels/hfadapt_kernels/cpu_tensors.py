"""How the C++ ops want their tensors: rows with neighbouring columns, no float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["as_rows", "lacks_dtype", "widen"]


def lacks_dtype(dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot compute in ``dtype``; ``None`` when they can."""
    if dtype in (torch.float32, torch.bfloat16, torch.float16):
        return None
    return f"the C++ kernels compute float32, bfloat16 and float16, not {dtype}"


def as_rows(x: Tensor) -> Tensor:
    """``x`` as [rows, columns] with neighbouring columns, a view where possible."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def widen(value: Any) -> Any:
    """float16 tensors, also in lists, as float32: processors without half products are a hundred times slower."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.float16 else value
    return [widen(item) for item in value] if isinstance(value, (list, tuple)) else value
