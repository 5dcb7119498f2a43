"""The Triton kernel that sorts the rows of a batch by task. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["order_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def order_kernel(ids_ptr, rows_ptr, starts_ptr, B, BLOCK: tl.constexpr):
    """One program a task, -1 first: it counts the rows of tasks before its own, and lists its own behind them."""
    task = tl.program_id(0) - 1
    local = tl.arange(0, BLOCK)
    at = tl.zeros((), tl.int64)
    for k in range(0, B, BLOCK):
        ids = tl.load(ids_ptr + k + local, mask=k + local < B, other=9223372036854775807)
        at += tl.sum((ids < task).to(tl.int64), 0)
    for k in range(0, B, BLOCK):
        ids = tl.load(ids_ptr + k + local, mask=k + local < B, other=9223372036854775807)
        mine = ids == task
        before = tl.cumsum(mine.to(tl.int32), 0)
        tl.store(rows_ptr + at + before - 1, (k + local).to(tl.int64), mask=mine)
        at += tl.sum(mine.to(tl.int64), 0)
    # Where the task behind this one starts.
    tl.store(starts_ptr + task + 1, at)
