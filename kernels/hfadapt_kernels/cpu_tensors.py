"""How the C++ ops want their tensors: rows with neighbouring columns, no float16."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .namespace import cpu_ops

__all__ = ["as_rows", "empty_result", "lacks_dtype", "widen"]

# Below, malloc itself keeps what is freed.
_LARGE = 1 << 20


def lacks_dtype(dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot compute in ``dtype``; ``None`` when they can."""
    if dtype in (torch.float32, torch.bfloat16, torch.float16):
        return None
    return f"the C++ kernels compute float32, bfloat16 and float16, not {dtype}"


def as_rows(x: Tensor) -> Tensor:
    """``x`` as [rows, columns] with neighbouring columns, a view where possible."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


@functools.cache
def _keeps_results() -> bool:
    return bool(cpu_ops.keeps_results())


def empty_result(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Uninitialised, contiguous, in the dtype of ``like``: what an op returns.

    Large ones lie in memory that later results use again once nobody holds it (``csrc/torch/runtime.cpp``, 256 MiB at
    most): malloc may give it back to the kernel, and then all its pages are faulted in again by the next call.
    """
    size = like.element_size()
    for extent in shape:
        size *= extent
    # torch's deterministic mode fills what is uninitialised, which only its own functions do.
    if size < _LARGE or torch.are_deterministic_algorithms_enabled() or not _keeps_results():
        return like.new_empty(shape)
    return cpu_ops.result(like, shape)


def widen(value: Any) -> Any:
    """float16 tensors, also in lists, as float32: processors without half products are a hundred times slower."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.float16 else value
    return [widen(item) for item in value] if isinstance(value, (list, tuple)) else value
