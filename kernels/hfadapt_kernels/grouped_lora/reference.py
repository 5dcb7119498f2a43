"""Low-rank updates of mixed batches in plain PyTorch: the formula, the tests' float64 truth, the fallback backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dropout import keep_scale
from ..rows import row_linear

__all__ = ["drop_elements", "grouped_lora_reference", "lora_linear_reference"]


def drop_elements(x: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """``x`` [B, ..., Din] with elements dropped by the hash of (position of the row of Din elements, column)."""
    if seed is None or dropout == 0.0:
        return x
    columns = x.shape[-1]
    rows = torch.arange(x.numel() // max(columns, 1), device=x.device).view(*x.shape[:-1], 1)
    keep = keep_scale(seed, rows, torch.arange(columns, device=x.device), dropout, x.dtype)
    return x if keep is None else x * keep


def grouped_lora_reference(
    x: Tensor,
    y: Tensor | None,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    learned: Sequence[Tensor],
    scale: Sequence[float],
    ids: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """``y + s_t (drop(x) A_tᵀ) B_tᵀ`` for every row, t its task (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    Args:
        x: [B, ..., Din].
        y: [B, ..., O] to add to, or ``None`` for the delta alone.
        a: One [R, Din] a task.
        b: One [O, R] a task.
        learned: Empty, or one tensor of one element a task that multiplies its ``scale``.
        scale: One number a task.
        ids: int64 [B]; -1 leaves the row as it is. ``None``: all rows have task 0.
        dropout: Probability of dropping an element of x.
        seed: int64 [1], or ``None`` for no dropout.
    """

    def delta(rows: Tensor, task: int) -> Tensor:
        low = row_linear(rows, a[task]) * scale[task]
        return row_linear(low * learned[task].reshape(()) if learned else low, b[task])

    kept = drop_elements(x, dropout, seed)
    if ids is None:
        return delta(kept, 0) if y is None else y + delta(kept, 0)
    # Rows sorted by task: one gather and one scatter for all tasks, views in between.
    tasks = ids.tolist()
    order = sorted((row for row, task in enumerate(tasks) if task >= 0), key=tasks.__getitem__)
    present = sorted(set(tasks) - {-1})
    out = x.new_zeros(*x.shape[:-1], b[0].shape[0] if b else x.shape[-1]) if y is None else y
    if not order:
        return out.clone()
    rows = torch.tensor(order, device=x.device)
    parts = kept.index_select(0, rows).split([tasks.count(task) for task in present])
    deltas = [delta(part, task) for part, task in zip(parts, present, strict=True)]
    return out.index_add(0, rows, torch.cat(deltas).to(out.dtype))


def lora_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, *lora: object) -> Tensor:
    """``x Wᵀ + bias`` plus the update of `grouped_lora_reference`, whose arguments from ``a`` on follow."""
    return grouped_lora_reference(x, F.linear(x, weight, bias), *lora)  # type: ignore[arg-type]
