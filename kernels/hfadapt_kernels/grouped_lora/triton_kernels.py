"""The Triton kernel of grouped_lora. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import add_product, dropout_factor, task_pointer, task_scale, task_size

__all__ = ["lora_rows_kernel", "lora_scales_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def lora_rows_kernel(
    x_ptr, base_ptr, out_ptr, low_ptr, other_ptr, parts_ptr, down_ptr, up_ptr, learned_ptr, table_ptr, ids_ptr,
    seed_ptr, tasks, T, K, N, max_rank, threshold, keep_scale,
    HAS_BASE: tl.constexpr, BACKWARD: tl.constexpr, DROPOUT: tl.constexpr, NEED_OUT: tl.constexpr,
    LEARNED: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, RANK_ALIGN: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens of one batch row, so one task. ``low = x down``, ``out = base + s low up``.

    Forward: down is A^T, up is B^T, x is dropped. BACKWARD: x is the gradient, down is B, up is A, and the dropout
    factors fall on the result. The rank rows pass through low_ptr [tokens, max_rank]. PARTS: each program leaves the
    sum of the products of its rank rows with those of the forward, of which the gradient of a learned scale is made.

    The table's columns: rank, the scale's bits, and where down, up and the learned scale lie.
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
        rank = task_size(table_ptr, tasks, task, 0, RANK_ALIGN)
        down = task_pointer(down_ptr, table_ptr, tasks, task, 2)
        product = tl.zeros((BM,), tl.float32)
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
                w = tl.load(down + at, mask=in_k[:, None] & in_rank[None, :], other=0.0)
                acc = tl.dot(x, w, acc, input_precision=PRECISION)
            at = local[:, None] * max_rank + rr[None, :]
            both = live[:, None] & in_rank[None, :]
            tl.store(low_ptr + at, acc.to(low_ptr.dtype.element_ty), mask=both)
            if PARTS:
                other = tl.load(other_ptr + first * max_rank + at, mask=both, other=0.0)
                product += tl.sum(acc * other.to(tl.float32), 1)
        if PARTS:
            program = row * tl.num_programs(1) + tl.program_id(1)
            tl.store(parts_ptr + program, tl.sum(tl.where(live, product, 0.0), 0))
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
                up = task_pointer(up_ptr, table_ptr, tasks, task, 3)
                low_at = local[:, None] * max_rank
                if BACKWARD:
                    acc = add_product(acc, low_ptr, low_at, live, up, rn, in_n, 1, N, rank, PRECISION, BR)
                else:
                    acc = add_product(acc, low_ptr, low_at, live, up, rn, in_n, rank, 1, rank, PRECISION, BR)
                factor = task_scale(table_ptr, tasks, task, 1)
                if LEARNED:
                    factor *= tl.load(task_pointer(learned_ptr, table_ptr, tasks, task, 4)).to(tl.float32)
                acc *= factor
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


@triton.jit
def lora_scales_kernel(parts_ptr, grad_ptr, table_ptr, order_ptr, starts_ptr, tasks, programs, BLOCK: tl.constexpr):
    """Gradient of each task's learned scale: its number times the parts of its rows, added in a fixed order.

    The table's columns: the number's bits, and where the gradient lies.
    """
    task = tl.program_id(0)
    begin = tl.load(starts_ptr + task) * programs
    end = tl.load(starts_ptr + task + 1) * programs
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(begin, end, BLOCK):
        rk = k + tl.arange(0, BLOCK)
        at = tl.load(order_ptr + rk // programs, mask=rk < end, other=0) * programs + rk % programs
        total += tl.load(parts_ptr + at, mask=rk < end, other=0.0)
    grad = tl.sum(total, 0) * task_scale(table_ptr, tasks, task, 0)
    tl.store(task_pointer(grad_ptr, table_ptr, tasks, task, 1), grad.to(grad_ptr.dtype.element_ty))
