"""What the host side of the Triton kernels shares: tables of pointers, rows and their tasks. Does not import triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["aligned", "by_task", "membership", "pointer_table", "precision", "rank_alignment", "rows_of"]


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that 16 divides: the kernels are told so."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def pointer_table(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Addresses of `aligned` tensors as int64 on the device: kernels index per-task weights without restacking them.

    The caller keeps the tensors alive until the launch is enqueued.
    """
    return by_task([tensor.data_ptr() for tensor in tensors], torch.int64, device)


def by_task(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One number a task, on the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def rows_of(x: Tensor, ids: Tensor | None) -> tuple[Tensor, int, int]:
    """Ids, number of batch rows and tokens a row of x [..., D]; one task for all is one long row."""
    tokens = x.shape[:-1].numel()
    if ids is None:
        return torch.zeros(1, dtype=torch.int64, device=x.device), 1, tokens
    return ids, x.shape[0], tokens // max(x.shape[0], 1)


def membership(ids: Tensor, tasks: int) -> Tensor:
    """[tasks, B] of 0 and 1: a product with it adds the rows of each task in a fixed order, without atomics."""
    return (ids[None, :] == torch.arange(tasks, device=ids.device)[:, None]).float()


def precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: TF32 only where the user allowed it for torch's own products."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def rank_alignment(ranks: Sequence[int]) -> int:
    """16, 8 or 1: divides every rank. Rows of a weight [D, R] are read as wide as their starts are aligned."""
    return next(align for align in (16, 8, 1) if all(rank % align == 0 for rank in ranks))
