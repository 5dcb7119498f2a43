"""What the host side of the Triton kernels shares about rows and numbers. Does not import triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .tables import task_table

__all__ = ["precision", "rank_alignment", "rows_of"]


def rows_of(x: Tensor, ids: Tensor | None) -> tuple[Tensor, int, int]:
    """Ids, number of batch rows and tokens a row of x [..., D]; one task for all is one long row."""
    tokens = x.shape[:-1].numel()
    if ids is None:
        return task_table(x.device, (0,)).view(1), 1, tokens
    return ids, x.shape[0], tokens // max(x.shape[0], 1)


def precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: TF32 only where the user allowed it for torch's own products."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def rank_alignment(ranks: Sequence[int]) -> int:
    """16, 8 or 1: divides every rank. Rows of a weight [D, R] are read as wide as their starts are aligned."""
    return next(align for align in (16, 8, 1) if all(rank % align == 0 for rank in ranks))
