"""The Triton kernel of grouped_lora. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import add_product, dropout_factor, task_pointer

__all__ = ["lora_rows_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def lora_rows_kernel(
    x_ptr, base_ptr, out_ptr, low_ptr, down_table, up_table, scales_ptr, ranks_ptr, ids_ptr, seed_ptr, T, K, N,
    max_rank, threshold, keep_scale,
    HAS_BASE: tl.constexpr, BACKWARD: tl.constexpr, DROPOUT: tl.constexpr, NEED_OUT: tl.constexpr,
    PRECISION: tl.constexpr, RANK_ALIGN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens of one batch row, so one task. ``low = x down``, ``out = base + s low up``.

    Forward: down is A^T, up is B^T, x is dropped. BACKWARD: x is the gradient, down is B, up is A, and the dropout
    factors fall on the result. The rank rows pass through low_ptr [tokens, max_rank].
    """
    row = tl.program_id(0).to(tl.int64)
    task = tl.load(ids_ptr + row)
    local = tl.arange(0, BM)
    live = tl.program_id(1) * BM + local < T
    # Offsets within the block fit 32 bits: blocks of 64-bit ones would take twice the registers.
    first = row * T + tl.program_id(1) * BM
    rm = first + local
    x_ptr += first * K
    base_ptr += first * N
    out_ptr += first * N
    low_ptr += first * max_rank
    rank = 0
    if task >= 0:
        rank = tl.multiple_of(tl.load(ranks_ptr + task), RANK_ALIGN)
        down_ptr = task_pointer(down_table, task, x_ptr)
        for r0 in range(0, rank, BR):
            rr = r0 + tl.arange(0, BR)
            in_rank = rr < rank
            acc = tl.zeros((BM, BR), tl.float32)
            for k in range(0, K, BK):
                rk = k + tl.arange(0, BK)
                in_k = rk < K
                x = tl.load(x_ptr + local[:, None] * K + rk[None, :], mask=live[:, None] & in_k[None, :], other=0.0)
                if DROPOUT and not BACKWARD:
                    x = (
                        x.to(tl.float32) * dropout_factor(seed_ptr, threshold, keep_scale, rm[:, None], rk[None, :])
                    ).to(x_ptr.dtype.element_ty)
                # How far apart rank and input neighbours lie: A is [R, K], B is [K, R].
                at = rr[None, :] + rk[:, None] * rank if BACKWARD else rr[None, :] * K + rk[:, None]
                w = tl.load(down_ptr + at, mask=in_k[:, None] & in_rank[None, :], other=0.0)
                acc = tl.dot(x, w, acc, input_precision=PRECISION)
            at = local[:, None] * max_rank + rr[None, :]
            tl.store(low_ptr + at, acc.to(low_ptr.dtype.element_ty), mask=live[:, None] & in_rank[None, :])
        # The rank rows written above are read by other threads of this program below.
        tl.debug_barrier()
    if NEED_OUT:
        for n in range(0, N, BN):
            rn = n + tl.arange(0, BN)
            in_n = rn < N
            both = live[:, None] & in_n[None, :]
            at = local[:, None] * N + rn[None, :]
            acc = tl.zeros((BM, BN), tl.float32)
            if task >= 0:
                up_ptr = task_pointer(up_table, task, x_ptr)
                low_at = local[:, None] * max_rank
                if BACKWARD:
                    acc = add_product(acc, low_ptr, low_at, live, up_ptr, rn, in_n, 1, N, rank, PRECISION, BR)
                else:
                    acc = add_product(acc, low_ptr, low_at, live, up_ptr, rn, in_n, rank, 1, rank, PRECISION, BR)
                acc *= tl.load(scales_ptr + task)
                if DROPOUT and BACKWARD:
                    acc *= dropout_factor(seed_ptr, threshold, keep_scale, rm[:, None], rn[None, :])
            if HAS_BASE:
                base = tl.load(base_ptr + at, mask=both, other=0.0)
                if task >= 0:
                    acc += base.to(tl.float32)
                    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=both)
                else:
                    # Bit for bit, a negative zero included.
                    tl.store(out_ptr + at, base, mask=both)
            else:
                tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=both)
