"""The backward Triton kernels of prefix_attention; every sum runs in a fixed order, without atomics."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import task_pointer, task_size
from .triton_scores import LOG2E, PREFIX_COLUMN, RELU, SOFTMAX, dot, dot_rows, factor, load_rows, real_scores, shift

__all__ = ["prefix_attention_dkv_kernel", "prefix_attention_dprefix_kernel", "prefix_attention_dq_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def prefix_attention_dq_kernel(
    q_ptr, k_ptr, v_ptr, pk_ptr, pv_ptr, table_ptr, ids_ptr, mask_ptr, bias_ptr, seed_ptr, out_ptr, do_ptr,
    gate_ptr, dgate_ptr, lse_ptr, delta_ptr, dq_ptr, dscores_ptr, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h,
    o_t, mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q, bias_k, tasks, plane, H, G, TQ, TK, D, scaling,
    threshold, keep,
    FORM: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    DGATE: tl.constexpr, DSCORES: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program: BM queries. Also writes delta [2, B, H, Tq], what each part's score gradients subtract."""
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), bh % H
    g = h // (H // G)
    rows, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    live, line = rows < TQ, bh * TQ + rows
    q_ptr += b * q_b + h * q_h
    do_ptr += b * o_b + h * o_h
    q = load_rows(q_ptr, rows, q_t, TQ, d, D, EVEN)
    do = load_rows(do_ptr, rows, o_t, TQ, d, D, EVEN)
    lse = shift(tl.load(lse_ptr + line, mask=live, other=0.0))
    prefix_lse = shift(tl.load(lse_ptr + plane + line, mask=live, other=0.0))
    delta = tl.zeros((BM,), tl.float32)
    if FORM == SOFTMAX:
        o = load_rows(out_ptr + b * o_b + h * o_h, rows, o_t, TQ, d, D, EVEN)
        delta += tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    dgate = tl.zeros((BM,), tl.float32)
    if DGATE:
        dgate = tl.load(dgate_ptr + line, mask=live, other=0.0)
        delta += dgate * tl.load(gate_ptr + line, mask=live, other=0.0)
    acc = tl.zeros((BM, BD), tl.float32)
    prefix_delta = delta
    task = tl.load(ids_ptr + b)
    P = 0
    if task >= 0:
        P = task_size(table_ptr, tasks, task, 0, 1)
    if P > 0:
        pk = task_pointer(pk_ptr, table_ptr, tasks, task, 1) + g.to(tl.int64) * P * D
        pv = task_pointer(pv_ptr, table_ptr, tasks, task, 2) + g.to(tl.int64) * P * D
        if FORM != SOFTMAX:
            # dO . (prefix part of the output): no_gating's prefix subtracts it.
            prefix_delta = tl.zeros((BM,), tl.float32)
            for n in range(0, P, BN):
                cols = n + tl.arange(0, BN)
                x = load_rows(pk, cols, D, P, d, D, EVEN)
                s = dot_rows(q, q_ptr, rows, q_t, TQ, x, pk, cols, D, P, D, PRECISION, WIDE) * scaling
                p = tl.maximum(s, 0.0) if FORM == RELU else tl.exp2((s - prefix_lse[:, None]) * LOG2E)
                x = load_rows(pv, cols, D, P, d, D, EVEN)
                dp = dot_rows(do, do_ptr, rows, o_t, TQ, x, pv, cols, D, P, D, PRECISION, WIDE)
                dp *= factor(seed_ptr, threshold, keep, line, cols.to(tl.int64) + PREFIX_COLUMN, DROPOUT)
                prefix_delta += tl.sum(tl.where((cols < P)[None, :], p * dp, 0.0), 1)
        for n in range(0, P, BN):
            cols = n + tl.arange(0, BN)
            x = load_rows(pk, cols, D, P, d, D, EVEN)
            s = dot_rows(q, q_ptr, rows, q_t, TQ, x, pk, cols, D, P, D, PRECISION, WIDE) * scaling
            y = load_rows(pv, cols, D, P, d, D, EVEN)
            dp = dot_rows(do, do_ptr, rows, o_t, TQ, y, pv, cols, D, P, D, PRECISION, WIDE)
            dp *= factor(seed_ptr, threshold, keep, line, cols.to(tl.int64) + PREFIX_COLUMN, DROPOUT)
            if FORM == RELU:
                ds = tl.where(s > 0.0, dp, 0.0)
            else:
                ds = tl.exp2((s - prefix_lse[:, None]) * LOG2E) * (dp + dgate[:, None] - prefix_delta[:, None])
            ds = tl.where((cols < P)[None, :] & live[:, None], ds, 0.0)
            acc += dot(ds.to(x.dtype), x, PRECISION)
    k_ptr += b * k_b + g * k_h
    v_ptr += b * v_b + g * v_h
    dscores_ptr += bh.to(tl.int64) * TQ * TK
    seen_end = TK
    if CAUSAL:
        seen_end = tl.minimum(TK, tl.maximum(0, (tl.program_id(0) + 1) * BM + TK - TQ))
    end = seen_end
    if DSCORES:
        end = TK
    if FORM != SOFTMAX:
        # dO . (what the real keys give): a sum of its own. The output has the prefix's part in it, which may be much
        # the larger, and the difference of the two would cancel.
        for n in range(0, seen_end, BN):
            cols = n + tl.arange(0, BN)
            x = load_rows(k_ptr, cols, k_t, TK, d, D, EVEN)
            s = dot_rows(q, q_ptr, rows, q_t, TQ, x, k_ptr, cols, k_t, TK, D, PRECISION, WIDE) * scaling
            s = real_scores(
                s, rows, cols, b, h, TQ, TK, mask_ptr, mask_b, mask_h, mask_q, mask_k, bias_ptr, bias_b, bias_h, bias_q,
                bias_k, CAUSAL, MASK, BIAS,
            )  # fmt: skip
            x = load_rows(v_ptr, cols, v_t, TK, d, D, EVEN)
            dp = dot_rows(do, do_ptr, rows, o_t, TQ, x, v_ptr, cols, v_t, TK, D, PRECISION, WIDE)
            dp *= factor(seed_ptr, threshold, keep, line, cols, DROPOUT)
            delta += tl.sum(tl.exp2((s - lse[:, None]) * LOG2E) * dp, 1)
    tl.store(delta_ptr + line, delta, mask=live)
    tl.store(delta_ptr + plane + line, prefix_delta, mask=live)
    for n in range(0, end, BN):
        cols = n + tl.arange(0, BN)
        x = load_rows(k_ptr, cols, k_t, TK, d, D, EVEN)
        s = dot_rows(q, q_ptr, rows, q_t, TQ, x, k_ptr, cols, k_t, TK, D, PRECISION, WIDE) * scaling
        s = real_scores(
            s, rows, cols, b, h, TQ, TK, mask_ptr, mask_b, mask_h, mask_q, mask_k, bias_ptr, bias_b, bias_h, bias_q,
            bias_k, CAUSAL, MASK, BIAS,
        )  # fmt: skip
        p = tl.exp2((s - lse[:, None]) * LOG2E)
        y = load_rows(v_ptr, cols, v_t, TK, d, D, EVEN)
        dp = dot_rows(do, do_ptr, rows, o_t, TQ, y, v_ptr, cols, v_t, TK, D, PRECISION, WIDE)
        dp *= factor(seed_ptr, threshold, keep, line, cols, DROPOUT)
        ds = p * (dp - delta[:, None])
        if DSCORES:
            at = rows[:, None] * TK + cols[None, :]
            tl.store(dscores_ptr + at, ds, mask=live[:, None] & (cols < TK)[None, :])
        acc += dot(ds.to(x.dtype), x, PRECISION)
    dq_ptr += b * o_b + h * o_h
    at = rows[:, None] * o_t + d[None, :]
    tl.store(dq_ptr + at, (acc * scaling).to(dq_ptr.dtype.element_ty), mask=live[:, None] & (d < D)[None, :])


@triton.jit
def prefix_attention_dkv_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, bias_ptr, seed_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, q_b, q_h, q_t, k_b,
    k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t, dk_b, dk_h, dk_t, mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q,
    bias_k, H, G, TQ, TK, D, scaling, threshold, keep,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """One program: BN real keys of one key head; runs over the queries of all heads of its group."""
    bg = tl.program_id(1)
    b, g = (bg // G).to(tl.int64), bg % G
    cols, d = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BD)
    k = load_rows(k_ptr + b * k_b + g * k_h, cols, k_t, TK, d, D, EVEN)
    v = load_rows(v_ptr + b * v_b + g * v_h, cols, v_t, TK, d, D, EVEN)
    dk, dv = tl.zeros((BN, BD), tl.float32), tl.zeros((BN, BD), tl.float32)
    rep = H // G
    first = 0
    if CAUSAL:
        first = tl.maximum(0, tl.program_id(0) * BN - (TK - TQ)) // BM * BM
    for r in range(0, rep):
        h = g * rep + r
        for start in range(first, TQ, BM):
            rows = start + tl.arange(0, BM)
            live, line = rows < TQ, (b * H + h) * TQ + rows
            q = load_rows(q_ptr + b * q_b + h * q_h, rows, q_t, TQ, d, D, EVEN)
            do = load_rows(do_ptr + b * o_b + h * o_h, rows, o_t, TQ, d, D, EVEN)
            lse = shift(tl.load(lse_ptr + line, mask=live, other=0.0))
            delta = tl.load(delta_ptr + line, mask=live, other=0.0)
            s = dot(q, tl.trans(k), PRECISION) * scaling
            s = real_scores(
                s, rows, cols, b, h, TQ, TK, mask_ptr, mask_b, mask_h, mask_q, mask_k, bias_ptr, bias_b, bias_h, bias_q,
                bias_k, CAUSAL, MASK, BIAS,
            )  # fmt: skip
            p = tl.exp2((s - lse[:, None]) * LOG2E)
            keeps = factor(seed_ptr, threshold, keep, line, cols, DROPOUT)
            dv += dot(tl.trans((p * keeps).to(do.dtype)), do, PRECISION)
            dp = dot(do, tl.trans(v), PRECISION) * keeps
            ds = p * (dp - delta[:, None])
            dk += dot(tl.trans(ds.to(q.dtype)), q, PRECISION)
    at = cols[:, None] * dk_t + d[None, :]
    dk_ptr += b * dk_b + g * dk_h
    dv_ptr += b * dk_b + g * dk_h
    inside = (cols < TK)[:, None] & (d < D)[None, :]
    tl.store(dk_ptr + at, (dk * scaling).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def prefix_attention_dprefix_kernel(
    q_ptr, pk_ptr, pv_ptr, table_ptr, order_ptr, starts_ptr, seed_ptr, do_ptr, dgate_ptr, lse_ptr, delta_ptr,
    dpk_ptr, dpv_ptr, q_b, q_h, q_t, o_b, o_h, o_t, tasks, plane, H, G, TQ, D, scaling, threshold, keep,
    FORM: tl.constexpr, DROPOUT: tl.constexpr, DGATE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One program: BN prefix columns of one task and key head; runs over the task's rows in order, without atomics."""
    task, g = tl.program_id(1), tl.program_id(2)
    P = task_size(table_ptr, tasks, task, 0, 1)
    cols, d = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BD)
    if tl.program_id(0) * BN >= P:
        return
    offset = g.to(tl.int64) * P * D
    pk = load_rows(task_pointer(pk_ptr, table_ptr, tasks, task, 1) + offset, cols, D, P, d, D, EVEN)
    pv = load_rows(task_pointer(pv_ptr, table_ptr, tasks, task, 2) + offset, cols, D, P, d, D, EVEN)
    dk, dv = tl.zeros((BN, BD), tl.float32), tl.zeros((BN, BD), tl.float32)
    rep = H // G
    for j in range(tl.load(starts_ptr + task), tl.load(starts_ptr + task + 1)):
        b = tl.load(order_ptr + j)
        for r in range(0, rep):
            h = g * rep + r
            for start in range(0, TQ, BM):
                rows = start + tl.arange(0, BM)
                live, line = rows < TQ, (b * H + h) * TQ + rows
                q = load_rows(q_ptr + b * q_b + h * q_h, rows, q_t, TQ, d, D, EVEN)
                do = load_rows(do_ptr + b * o_b + h * o_h, rows, o_t, TQ, d, D, EVEN)
                s = dot(q, tl.trans(pk), PRECISION) * scaling
                keeps = factor(seed_ptr, threshold, keep, line, cols.to(tl.int64) + PREFIX_COLUMN, DROPOUT)
                dp = dot(do, tl.trans(pv), PRECISION) * keeps
                if FORM == RELU:
                    p = tl.maximum(s, 0.0)
                    ds = tl.where(s > 0.0, dp, 0.0)
                else:
                    lse = shift(tl.load(lse_ptr + plane + line, mask=live, other=0.0))
                    p = tl.exp2((s - lse[:, None]) * LOG2E)
                    if DGATE:
                        dp += tl.load(dgate_ptr + line, mask=live, other=0.0)[:, None]
                    ds = p * (dp - tl.load(delta_ptr + plane + line, mask=live, other=0.0)[:, None])
                p, ds = tl.where(live[:, None], p * keeps, 0.0), tl.where(live[:, None], ds, 0.0)
                dv += dot(tl.trans(p.to(do.dtype)), do, PRECISION)
                dk += dot(tl.trans(ds.to(q.dtype)), q, PRECISION)
    at = cols[:, None] * D + d[None, :]
    inside = (cols < P)[:, None] & (d < D)[None, :]
    dpk = task_pointer(dpk_ptr, table_ptr, tasks, task, 3) + offset
    dpv = task_pointer(dpv_ptr, table_ptr, tasks, task, 4) + offset
    tl.store(dpk + at, (dk * scaling).to(q_ptr.dtype.element_ty), mask=inside)
    tl.store(dpv + at, dv.to(q_ptr.dtype.element_ty), mask=inside)
