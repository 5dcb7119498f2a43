"""The Triton kernel of grouped_lora. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import dropout_factor

__all__ = ["lora_rows_kernel"]


@triton.jit
def lora_rows_kernel(
    x_ptr, base_ptr, out_ptr, low_ptr, down_table, up_table, scales_ptr, ranks_ptr, ids_ptr, seed_ptr, T, K, N,
    max_rank, threshold, keep_scale,
    HAS_BASE: tl.constexpr, BACKWARD: tl.constexpr, DROPOUT: tl.constexpr, NEED_OUT: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens of one batch row, so one task. ``low = x down``, ``out = base + s low up``.

    Forward: down is A^T, up is B^T, x is dropped. BACKWARD: x is the gradient, down is B, up is A, and the dropout
    factors fall on the result. The rank rows pass through low_ptr [tokens, max_rank].
    """
    row = tl.program_id(0).to(tl.int64)
    task = tl.load(ids_ptr + row)
    token = tl.program_id(1) * BM + tl.arange(0, BM)
    live = token < T
    rm = row * T + token
    rank = 0
    if task >= 0:
        rank = tl.load(ranks_ptr + task)
        down_ptr = tl.load(down_table + task).to(tl.pointer_type(x_ptr.dtype.element_ty))
        # How far apart rank and input neighbours lie: A is [R, K], B is [K, R].
        down_r = K
        down_k = 1
        if BACKWARD:
            down_r = 1
            down_k = rank
        for r0 in range(0, rank, BR):
            rr = r0 + tl.arange(0, BR)
            in_rank = rr < rank
            acc = tl.zeros((BM, BR), tl.float32)
            for k in range(0, K, BK):
                rk = k + tl.arange(0, BK)
                in_k = rk < K
                x = tl.load(x_ptr + rm[:, None] * K + rk[None, :], mask=live[:, None] & in_k[None, :], other=0.0)
                if DROPOUT and not BACKWARD:
                    x = (
                        x.to(tl.float32) * dropout_factor(seed_ptr, threshold, keep_scale, rm[:, None], rk[None, :])
                    ).to(x_ptr.dtype.element_ty)
                at = rr[None, :] * down_r + rk[:, None] * down_k
                w = tl.load(down_ptr + at, mask=in_k[:, None] & in_rank[None, :], other=0.0)
                acc = tl.dot(x, w, acc, input_precision=PRECISION)
            at = rm[:, None] * max_rank + rr[None, :]
            tl.store(low_ptr + at, acc.to(low_ptr.dtype.element_ty), mask=live[:, None] & in_rank[None, :])
        # The rank rows written above are read by other threads of this program below.
        tl.debug_barrier()
    if NEED_OUT:
        for n in range(0, N, BN):
            rn = n + tl.arange(0, BN)
            in_n = rn < N
            both = live[:, None] & in_n[None, :]
            at = rm[:, None] * N + rn[None, :]
            acc = tl.zeros((BM, BN), tl.float32)
            if task >= 0:
                up_ptr = tl.load(up_table + task).to(tl.pointer_type(x_ptr.dtype.element_ty))
                up_r = 1
                up_n = rank
                if BACKWARD:
                    up_r = N
                    up_n = 1
                for r0 in range(0, rank, BR):
                    rr = r0 + tl.arange(0, BR)
                    in_rank = rr < rank
                    low = tl.load(
                        low_ptr + rm[:, None] * max_rank + rr[None, :], mask=live[:, None] & in_rank[None, :], other=0.0
                    )
                    spot = rr[:, None] * up_r + rn[None, :] * up_n
                    w = tl.load(up_ptr + spot, mask=in_rank[:, None] & in_n[None, :], other=0.0)
                    acc = tl.dot(low, w, acc, input_precision=PRECISION)
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
