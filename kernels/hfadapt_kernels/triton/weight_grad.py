"""The Triton kernel of the per-task weight gradients. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["weight_grad_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def weight_grad_kernel(
    a_ptr, b_ptr, out_table, order_ptr, starts_ptr, rows_ptr, cols_ptr, T, lda, ldb,
    PRECISION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``out_t[i, j] = sum over tokens n of task t: a[n, i] * b[n, j]``, float32, tokens in a fixed order."""
    task = tl.program_id(0)
    rows = tl.load(rows_ptr + task)
    cols = tl.load(cols_ptr + task)
    ri = tl.program_id(1) * BI + tl.arange(0, BI)
    rj = tl.program_id(2) * BJ + tl.arange(0, BJ)
    in_i = ri < rows
    in_j = rj < cols
    begin = tl.load(starts_ptr + task) * T
    end = tl.load(starts_ptr + task + 1) * T
    acc = tl.zeros((BI, BJ), tl.float32)
    for k in range(begin, end, BK):
        rk = k + tl.arange(0, BK)
        in_k = rk < end
        token = tl.load(order_ptr + rk // T, mask=in_k, other=0) * T + rk % T
        a = tl.load(a_ptr + token[None, :] * lda + ri[:, None], mask=in_i[:, None] & in_k[None, :], other=0.0)
        b = tl.load(b_ptr + token[:, None] * ldb + rj[None, :], mask=in_k[:, None] & in_j[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    out_ptr = tl.load(out_table + task).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr + ri[:, None].to(tl.int64) * cols + rj[None, :], acc, mask=in_i[:, None] & in_j[None, :])
