"""The Triton kernel of the per-task weight gradients. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import dropout_factor, task_pointer, task_scale, task_size

__all__ = ["task_products_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def _factor(table_ptr, learned_ptr, tasks, task, ri, in_i, SCALE: tl.constexpr):
    """What the sums of a task are multiplied by: a number, a learned number times it, or a learned vector times it."""
    factor = task_scale(table_ptr, tasks, task, 0)
    if SCALE == 2:
        learned = task_pointer(learned_ptr, table_ptr, tasks, task, 1)
        return factor * tl.load(learned + ri, mask=in_i, other=0.0).to(tl.float32)
    if SCALE == 1:
        factor *= tl.load(task_pointer(learned_ptr, table_ptr, tasks, task, 1)).to(tl.float32)
    return tl.zeros_like(ri).to(tl.float32) + factor


@triton.jit
def _product(
    a_ptr, b_ptr, out_ptr, sums_ptr, learned_ptr, weight_ptr, bias_ptr, parts_ptr, table_ptr, order_ptr, starts_ptr,
    seed_ptr, tasks, T, a_n, b_n, threshold, keep_scale, parts, height, task, tile,
    FIRST: tl.constexpr, WANT: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One block of one task. WANT: 1 the product, 2 the sums of a beside it, 4 what a learned scale needs of both."""
    rows = task_size(table_ptr, tasks, task, FIRST, 1)
    cols = task_size(table_ptr, tasks, task, FIRST + 1, 1)
    across = tl.cdiv(cols, BJ)
    i, j = tile // across, tile % across
    if i * BI < rows:
        ri, rj = i * BI + tl.arange(0, BI), j * BJ + tl.arange(0, BJ)
        in_i, in_j = ri < rows, rj < cols
        begin = tl.load(starts_ptr + task) * T
        end = tl.load(starts_ptr + task + 1) * T
        acc = tl.zeros((BI, BJ), tl.float32)
        side = tl.zeros((BI,), tl.float32)
        for k in range(begin, end, BK):
            rk = k + tl.arange(0, BK)
            in_k = rk < end
            token = tl.load(order_ptr + rk // T, mask=in_k, other=0) * T + rk % T
            a = tl.load(a_ptr + token[None, :] * a_n + ri[:, None], mask=in_i[:, None] & in_k[None, :], other=0.0)
            if WANT & 6:
                side += tl.sum(a.to(tl.float32), 1)
            if WANT & 5:
                b = tl.load(b_ptr + token[:, None] * b_n + rj[None, :], mask=in_k[:, None] & in_j[None, :], other=0.0)
                if DROPOUT:
                    keep = dropout_factor(seed_ptr, threshold, keep_scale, token[:, None], rj[None, :])
                    b = (b.to(tl.float32) * keep).to(b.dtype)
                acc = tl.dot(a, b, acc, input_precision=PRECISION)
        both = in_i[:, None] & in_j[None, :]
        if WANT & 4:
            # The scale's gradient is a sum over the whole of acc * weight; each block leaves its own part.
            at = ri[:, None] * cols + rj[None, :]
            weight = tl.load(task_pointer(weight_ptr, table_ptr, tasks, task, 2) + at, mask=both, other=0.0)
            part = tl.sum(acc * weight.to(tl.float32), 1)
            if HAS_BIAS:  # noqa: SIM102  what is known when it is compiled stands alone
                if j == 0:
                    bias = task_pointer(bias_ptr, table_ptr, tasks, task, 3)
                    part += side * tl.load(bias + ri, mask=in_i, other=0.0).to(tl.float32)
            tl.store(parts_ptr + (task.to(tl.int64) * parts + j) * height + ri, part, mask=in_i)
        factor = tl.full((BI,), 1.0, tl.float32)
        if SCALE < 3:
            factor = _factor(table_ptr, learned_ptr, tasks, task, ri, in_i, SCALE)
        if WANT & 1:
            out = task_pointer(out_ptr, table_ptr, tasks, task, FIRST + 2)
            out += ri[:, None].to(tl.int64) * cols + rj[None, :]
            tl.store(out, (acc * factor[:, None]).to(out_ptr.dtype.element_ty), mask=both)
        if WANT & 2:  # noqa: SIM102  known when it is compiled, as above
            if j == 0:
                sums = task_pointer(sums_ptr, table_ptr, tasks, task, FIRST + 3) + ri
                tl.store(sums, (side * factor).to(sums_ptr.dtype.element_ty), mask=in_i)


@triton.jit
def task_products_kernel(
    a0_ptr, b0_ptr, out0_ptr, sums0_ptr, a1_ptr, b1_ptr, out1_ptr, sums1_ptr, learned_ptr, weight_ptr, bias_ptr,
    parts_ptr, table_ptr, order_ptr, starts_ptr, seed_ptr, tasks, T, a0_n, b0_n, a1_n, b1_n, threshold, keep_scale,
    parts, height,
    WANT0: tl.constexpr, WANT1: tl.constexpr, SCALE0: tl.constexpr, SCALE1: tl.constexpr, DROPOUT: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``out_t[i, j] = s_t sum a[n, i] b[n, j]`` over the tokens n of task t, for two pairs a, b, in a fixed order.

    Beside it ``sums_t[i] = s_t sum a[n, i]``. SCALE: 0 a number, 1 a learned number times it, 2 a learned vector times
    it, 3 none. DROPOUT falls on the first b. The table's columns: the number's bits; where the learned scale, the
    weight and the bias lie; then of each pair rows and columns of out, and where out and sums lie.
    """
    task, tile = tl.program_id(0) // 2, tl.program_id(1)
    if tl.program_id(0) % 2 == 0:
        if WANT0:
            _product(
                a0_ptr, b0_ptr, out0_ptr, sums0_ptr, learned_ptr, weight_ptr, bias_ptr, parts_ptr, table_ptr, order_ptr,
                starts_ptr, seed_ptr, tasks, T, a0_n, b0_n, threshold, keep_scale, parts, height, task, tile, 4, WANT0,
                SCALE0, DROPOUT, HAS_BIAS, PRECISION, BI, BJ, BK,
            )  # fmt: skip
    else:
        if WANT1:
            _product(
                a1_ptr, b1_ptr, out1_ptr, sums1_ptr, learned_ptr, weight_ptr, bias_ptr, parts_ptr, table_ptr, order_ptr,
                starts_ptr, seed_ptr, tasks, T, a1_n, b1_n, threshold, keep_scale, parts, height, task, tile, 8, WANT1,
                SCALE1, False, HAS_BIAS, PRECISION, BI, BJ, BK,
            )  # fmt: skip
