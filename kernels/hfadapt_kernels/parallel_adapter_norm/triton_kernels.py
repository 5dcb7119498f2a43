"""The Triton kernels of parallel_adapter_norm. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import (
    activate,
    activate_derivative,
    add_product,
    dropout_factor,
    task_pointer,
    task_scale,
    task_size,
)  # fmt: skip

__all__ = ["adapter_norm_bwd_kernel", "adapter_norm_fwd_kernel", "adapter_norm_sums_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def adapter_norm_fwd_kernel(
    x_ptr, residual_ptr, h_ptr, out_ptr, z_ptr, pre_ptr, act_ptr, mean_ptr, rstd_ptr, down_ptr, up_ptr, down_bias_ptr,
    up_bias_ptr, scale_ptr, table_ptr, ids_ptr, norm_weight_ptr, norm_bias_ptr, seed_ptr, tasks, T, D, DH, max_rank,
    eps, norm_offset, threshold, keep_scale,
    ACT: tl.constexpr, NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_DOWN_BIAS: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr, SCALE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr, RANK_ALIGN: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens of one batch row, so one task. The bottleneck passes through act_ptr [N, max_rank].

    The table's columns: rank, the scale's bits, and where down, up, their biases and the learned scale lie.
    """
    row = tl.program_id(0).to(tl.int64)
    task = tl.load(ids_ptr + row)
    local = tl.arange(0, BM)
    live = tl.program_id(1) * BM + local < T
    # Offsets within the block fit 32 bits: blocks of 64-bit ones would take twice the registers.
    first = row * T + tl.program_id(1) * BM
    rm = first + local
    x_ptr += first * D
    residual_ptr += first * D
    out_ptr += first * D
    z_ptr += first * D
    h_ptr += first * DH
    pre_ptr += first * max_rank
    act_ptr += first * max_rank
    rank = 0
    if task >= 0:
        rank = task_size(table_ptr, tasks, task, 0, RANK_ALIGN)
        down = task_pointer(down_ptr, table_ptr, tasks, task, 2)
        for r0 in range(0, rank, BR):
            rr = r0 + tl.arange(0, BR)
            in_rank = rr < rank
            acc = tl.zeros((BM, BR), tl.float32)
            acc = add_product(acc, h_ptr, local[:, None] * DH, live, down, rr, in_rank, DH, 1, DH, PRECISION, BD)
            if HAS_DOWN_BIAS:
                bias = task_pointer(down_bias_ptr, table_ptr, tasks, task, 4)
                acc += tl.load(bias + rr, mask=in_rank, other=0.0).to(tl.float32)[None, :]
            both = live[:, None] & in_rank[None, :]
            at = local[:, None] * max_rank + rr[None, :]
            if SAVE:
                tl.store(pre_ptr + at, acc.to(pre_ptr.dtype.element_ty), mask=both)
            t = activate(acc, ACT)
            if DROPOUT:
                t *= dropout_factor(seed_ptr, threshold, keep_scale, rm[:, None], rr[None, :])
            tl.store(act_ptr + at, t.to(act_ptr.dtype.element_ty), mask=both)
        # The bottleneck written above is read by other threads of this program below.
        tl.debug_barrier()
    total = tl.zeros((BM,), tl.float32)
    for n in range(0, D, BD):
        rn = n + tl.arange(0, BD)
        in_n = rn < D
        both = live[:, None] & in_n[None, :]
        at = local[:, None] * D + rn[None, :]
        z = tl.load(x_ptr + at, mask=both, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            z += tl.load(residual_ptr + at, mask=both, other=0.0).to(tl.float32)
        if task >= 0:
            up = task_pointer(up_ptr, table_ptr, tasks, task, 3)
            u = tl.zeros((BM, BD), tl.float32)
            u = add_product(u, act_ptr, local[:, None] * max_rank, live, up, rn, in_n, rank, 1, rank, PRECISION, BR)
            if HAS_UP_BIAS:
                bias = task_pointer(up_bias_ptr, table_ptr, tasks, task, 5)
                u += tl.load(bias + rn, mask=in_n, other=0.0).to(tl.float32)[None, :]
            # SCALE: 0 numbers, 1 one learned number a task, 2 a learned vector a task.
            if SCALE == 2:
                learned = task_pointer(scale_ptr, table_ptr, tasks, task, 6)
                u *= tl.load(learned + rn, mask=in_n, other=0.0).to(tl.float32)[None, :]
            elif SCALE == 1:
                u *= tl.load(task_pointer(scale_ptr, table_ptr, tasks, task, 6)).to(tl.float32)
            else:
                u *= task_scale(table_ptr, tasks, task, 1)
            z += u
        if SAVE and NORM > 0:
            tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=both)
        tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty), mask=both)
        total += tl.sum(tl.where(both, z, 0.0), 1)
    if NORM > 0:
        # out holds z until it is normalised in place.
        tl.debug_barrier()
        mean = total / D
        if NORM == 2:
            mean = tl.zeros((BM,), tl.float32)
        square = tl.zeros((BM,), tl.float32)
        for n in range(0, D, BD):
            rn = n + tl.arange(0, BD)
            both = live[:, None] & (rn < D)[None, :]
            z = tl.load(out_ptr + local[:, None] * D + rn[None, :], mask=both, other=0.0).to(tl.float32)
            d = tl.where(both, z - mean[:, None], 0.0)
            square += tl.sum(d * d, 1)
        rstd = 1.0 / tl.sqrt(square / D + eps)
        if SAVE:
            tl.store(mean_ptr + rm, mean, mask=live)
            tl.store(rstd_ptr + rm, rstd, mask=live)
        for n in range(0, D, BD):
            rn = n + tl.arange(0, BD)
            in_n = rn < D
            both = live[:, None] & in_n[None, :]
            at = local[:, None] * D + rn[None, :]
            y = (tl.load(out_ptr + at, mask=both, other=0.0).to(tl.float32) - mean[:, None]) * rstd[:, None]
            if HAS_WEIGHT:
                y *= (tl.load(norm_weight_ptr + rn, mask=in_n, other=0.0).to(tl.float32) + norm_offset)[None, :]
            if HAS_BIAS:
                y += tl.load(norm_bias_ptr + rn, mask=in_n, other=0.0).to(tl.float32)[None, :]
            tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=both)


@triton.jit
def adapter_norm_bwd_kernel(
    dout_ptr, z_ptr, pre_ptr, mean_ptr, rstd_ptr, dz_ptr, dh_ptr, dpre_ptr, act_ptr, sums_ptr, down_ptr, up_ptr,
    scale_ptr, table_ptr, ids_ptr, norm_weight_ptr, seed_ptr, tasks, T, D, DH, max_rank, norm_offset, threshold,
    keep_scale,
    ACT: tl.constexpr, NORM: tl.constexpr, SCALE: tl.constexpr, HAS_WEIGHT: tl.constexpr, DROPOUT: tl.constexpr,
    NEED_H: tl.constexpr, PRECISION: tl.constexpr, RANK_ALIGN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens of one batch row. Writes dz, dh, dpre, act(pre) and, with a norm, two column sums [2, D].

    The table is that of the forward.
    """
    row = tl.program_id(0).to(tl.int64)
    program = row * tl.num_programs(1) + tl.program_id(1)
    task = tl.load(ids_ptr + row)
    local = tl.arange(0, BM)
    live = tl.program_id(1) * BM + local < T
    first = row * T + tl.program_id(1) * BM
    rm = first + local
    dout_ptr += first * D
    z_ptr += first * D
    dz_ptr += first * D
    dh_ptr += first * DH
    pre_ptr += first * max_rank
    dpre_ptr += first * max_rank
    act_ptr += first * max_rank
    sums_ptr += program * 2 * D
    mean = tl.zeros((BM,), tl.float32)
    rstd = tl.zeros((BM,), tl.float32)
    c1 = tl.zeros((BM,), tl.float32)
    c2 = tl.zeros((BM,), tl.float32)
    if NORM > 0:
        rstd = tl.load(rstd_ptr + rm, mask=live, other=0.0)
        if NORM == 1:
            mean = tl.load(mean_ptr + rm, mask=live, other=0.0)
        for n in range(0, D, BD):
            rn = n + tl.arange(0, BD)
            in_n = rn < D
            both = live[:, None] & in_n[None, :]
            at = local[:, None] * D + rn[None, :]
            d = tl.load(dout_ptr + at, mask=both, other=0.0).to(tl.float32)
            z = tl.load(z_ptr + at, mask=both, other=0.0).to(tl.float32)
            xhat = tl.where(both, (z - mean[:, None]) * rstd[:, None], 0.0)
            tl.store(sums_ptr + rn, tl.sum(d * xhat, 0), mask=in_n)
            tl.store(sums_ptr + D + rn, tl.sum(d, 0), mask=in_n)
            if HAS_WEIGHT:
                d *= (tl.load(norm_weight_ptr + rn, mask=in_n, other=0.0).to(tl.float32) + norm_offset)[None, :]
            c1 += tl.sum(d, 1)
            c2 += tl.sum(d * xhat, 1)
        c1 = c1 / D
        c2 = c2 / D
        if NORM == 2:
            c1 = tl.zeros((BM,), tl.float32)
    for n in range(0, D, BD):
        rn = n + tl.arange(0, BD)
        in_n = rn < D
        both = live[:, None] & in_n[None, :]
        at = local[:, None] * D + rn[None, :]
        d = tl.load(dout_ptr + at, mask=both, other=0.0).to(tl.float32)
        if NORM > 0:
            z = tl.load(z_ptr + at, mask=both, other=0.0).to(tl.float32)
            xhat = tl.where(both, (z - mean[:, None]) * rstd[:, None], 0.0)
            if HAS_WEIGHT:
                d *= (tl.load(norm_weight_ptr + rn, mask=in_n, other=0.0).to(tl.float32) + norm_offset)[None, :]
            d = tl.where(both, rstd[:, None] * (d - c1[:, None] - xhat * c2[:, None]), 0.0)
        tl.store(dz_ptr + at, d.to(dz_ptr.dtype.element_ty), mask=both)
    # dz written above is read by other threads of this program below.
    tl.debug_barrier()
    rank = 0
    if task >= 0:
        rank = task_size(table_ptr, tasks, task, 0, RANK_ALIGN)
        up = task_pointer(up_ptr, table_ptr, tasks, task, 3)
        for r0 in range(0, rank, BR):
            rr = r0 + tl.arange(0, BR)
            in_rank = rr < rank
            acc = tl.zeros((BM, BR), tl.float32)
            for n in range(0, D, BD):
                rn = n + tl.arange(0, BD)
                in_n = rn < D
                d = tl.load(dz_ptr + local[:, None] * D + rn[None, :], mask=live[:, None] & in_n[None, :], other=0.0)
                if SCALE == 2:
                    s = tl.load(task_pointer(scale_ptr, table_ptr, tasks, task, 6) + rn, mask=in_n, other=0.0)
                    d = (d.to(tl.float32) * s.to(tl.float32)[None, :]).to(dz_ptr.dtype.element_ty)
                w = tl.load(up + rn[:, None] * rank + rr[None, :], mask=in_n[:, None] & in_rank[None, :], other=0.0)
                acc = tl.dot(d, w, acc, input_precision=PRECISION)
            if SCALE == 1:
                acc *= tl.load(task_pointer(scale_ptr, table_ptr, tasks, task, 6)).to(tl.float32)
            elif SCALE == 0:
                acc *= task_scale(table_ptr, tasks, task, 1)
            both = live[:, None] & in_rank[None, :]
            at = local[:, None] * max_rank + rr[None, :]
            pre = tl.load(pre_ptr + at, mask=both, other=0.0).to(tl.float32)
            acc *= activate_derivative(pre, ACT)
            t = activate(pre, ACT)
            if DROPOUT:
                keep = dropout_factor(seed_ptr, threshold, keep_scale, rm[:, None], rr[None, :])
                acc *= keep
                t *= keep
            tl.store(dpre_ptr + at, acc.to(dpre_ptr.dtype.element_ty), mask=both)
            tl.store(act_ptr + at, t.to(act_ptr.dtype.element_ty), mask=both)
        tl.debug_barrier()
    if NEED_H:
        for n in range(0, DH, BD):
            rn = n + tl.arange(0, BD)
            in_n = rn < DH
            acc = tl.zeros((BM, BD), tl.float32)
            if task >= 0:
                down = task_pointer(down_ptr, table_ptr, tasks, task, 2)
                acc = add_product(
                    acc, dpre_ptr, local[:, None] * max_rank, live, down, rn, in_n, 1, DH, rank, PRECISION, BR
                )
            both = live[:, None] & in_n[None, :]
            tl.store(dh_ptr + local[:, None] * DH + rn[None, :], acc.to(dh_ptr.dtype.element_ty), mask=both)


@triton.jit
def _store_sum(out_ptr, sums_ptr, rn, programs, D, KIND: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    acc = tl.zeros((BD,), tl.float32)
    for m in range(0, programs, BM):
        rm = m + tl.arange(0, BM)
        at = (rm.to(tl.int64) * 2 + KIND)[:, None] * D + rn[None, :]
        acc += tl.sum(tl.load(sums_ptr + at, mask=(rm < programs)[:, None] & (rn < D)[None, :], other=0.0), 0)
    tl.store(out_ptr + rn, acc.to(out_ptr.dtype.element_ty), mask=rn < D)


@triton.jit
def adapter_norm_sums_kernel(
    sums_ptr, parts_ptr, weight_ptr, bias_ptr, scale_ptr, table_ptr, tasks, programs, parts, D,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Adds up what the kernels before left: gradients of the norm's weight and bias, and of the learned scales.

    Program 0 of the first axis: the weight; 1: the bias; from 2: the scale of a task. The table's columns: blocks that
    hold a part of the scale's gradient, how long the scale is, and where its gradient lies.
    """
    kind = tl.program_id(0)
    n = tl.program_id(1) * BD
    rn = n + tl.arange(0, BD)
    if kind == 0:
        if WEIGHT:
            _store_sum(weight_ptr, sums_ptr, rn, programs, D, 0, BM, BD)
    elif kind == 1:
        if BIAS:
            _store_sum(bias_ptr, sums_ptr, rn, programs, D, 1, BM, BD)
    else:
        task = kind - 2
        blocks = task_size(table_ptr, tasks, task, 0, 1)
        length = task_size(table_ptr, tasks, task, 1, 1)
        out = task_pointer(scale_ptr, table_ptr, tasks, task, 2)
        first = parts_ptr + task.to(tl.int64) * parts * D
        if length > 1:
            acc = tl.zeros((BD,), tl.float32)
            for block in range(0, blocks):
                acc += tl.load(first + block * D + rn, mask=rn < D, other=0.0)
            tl.store(out + rn, acc.to(scale_ptr.dtype.element_ty), mask=rn < D)
        else:
            if n == 0:
                total = tl.zeros((BD,), tl.float32)
                for k in range(0, D, BD):
                    rk = k + tl.arange(0, BD)
                    for block in range(0, blocks):
                        total += tl.load(first + block * D + rk, mask=rk < D, other=0.0)
                tl.store(out, tl.sum(total, 0).to(scale_ptr.dtype.element_ty))
