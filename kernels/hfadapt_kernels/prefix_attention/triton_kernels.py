"""Triton kernels of prefix_attention: flash attention whose first columns come from the task's prefix, by pointer.

Scores are in natural units; ``2 ** ((s - m) * log2 e)`` keeps the lowest finite mask value finite. A row that sees
nothing has maximum -inf, which `_shift` replaces, so its sums are 0 and its result is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import dropout_factor, task_pointer

__all__ = ["prefix_attention_dkv_kernel", "prefix_attention_dprefix_kernel", "prefix_attention_dq_kernel",
           "prefix_attention_fwd_kernel"]  # fmt: skip

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
SOFTMAX: tl.constexpr = tl.constexpr(0)
NO_GATING: tl.constexpr = tl.constexpr(1)
RELU: tl.constexpr = tl.constexpr(2)
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# The dropout stream of prefix columns (reference.py).
PREFIX_COLUMN: tl.constexpr = tl.constexpr(2147483648)


@triton.jit
def _shift(m):
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _load_rows(ptr, rows, stride, count, cols, D, EVEN: tl.constexpr):
    """[rows, cols] of a tensor whose last axis has stride 1; 0 outside. EVEN: cols covers exactly D."""
    # 32-bit offsets within one head (checked by the host): 64-bit ones would take half of the registers.
    at = rows[:, None] * stride + cols[None, :]
    if EVEN:
        return tl.load(ptr + at, mask=(rows < count)[:, None], other=0.0)
    else:
        return tl.load(ptr + at, mask=(rows < count)[:, None] & (cols < D)[None, :], other=0.0)


@triton.jit
def _dot_rows(
    a, a_ptr, a_rows, a_stride, a_count, b, b_ptr, b_rows, b_stride, b_count, D, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """``a b^T`` of two blocks of rows. WIDE: loaded again, 64 columns at a time.

    A float32 product without tensor cores keeps whole rows in registers; beyond 128 columns they would spill.
    """
    if WIDE:
        out = tl.zeros((a_rows.shape[0], b_rows.shape[0]), tl.float32)
        for start in range(0, D, 64):
            d = start + tl.arange(0, 64)
            x = _load_rows(a_ptr, a_rows, a_stride, a_count, d, D, False)
            out += _dot(x, tl.trans(_load_rows(b_ptr, b_rows, b_stride, b_count, d, D, False)), PRECISION)
        return out
    else:
        return _dot(a, tl.trans(b), PRECISION)


@triton.jit
def _real_scores(
    s, rows, cols, b, h, TQ, TK, mask_ptr, mask_b, mask_h, mask_q, mask_k, bias_ptr, bias_b, bias_h, bias_q, bias_k,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Scores of real keys with bias and mask added; -inf where nothing is seen."""
    seen = (rows < TQ)[:, None] & (cols < TK)[None, :]
    if BIAS:
        at = rows[:, None] * bias_q + cols[None, :] * bias_k
        s += tl.load(bias_ptr + b * bias_b + h * bias_h + at, mask=seen, other=0.0).to(tl.float32)
    if MASK > 0:
        at = rows[:, None] * mask_q + cols[None, :] * mask_k
        mask_ptr += b * mask_b + h * mask_h
        if MASK == 1:
            seen = seen & (tl.load(mask_ptr + at, mask=seen, other=0) != 0)
        else:
            s += tl.load(mask_ptr + at, mask=seen, other=0.0).to(tl.float32)
    if CAUSAL:
        seen = seen & (cols[None, :] <= rows[:, None] + (TK - TQ))
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _factor(seed_ptr, threshold, keep, line, cols, DROPOUT: tl.constexpr):
    if DROPOUT:
        return dropout_factor(seed_ptr, threshold, keep, line[:, None], cols[None, :])
    else:
        return 1.0


@triton.jit
def prefix_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, pk_table, pv_table, lengths_ptr, ids_ptr, mask_ptr, bias_ptr, seed_ptr, out_ptr, gate_ptr,
    lse_ptr, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t, mask_b, mask_h, mask_q, mask_k, bias_b, bias_h,
    bias_q, bias_k, plane, H, G, TQ, TK, D, scaling, threshold, keep,
    FORM: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """One program: BM queries of one head of one batch row."""
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), bh % H
    g = h // (H // G)
    rows, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    line = bh * TQ + rows
    q = _load_rows(q_ptr + b * q_b + h * q_h, rows, q_t, TQ, d, D, EVEN)
    m = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    task = tl.load(ids_ptr + b)
    P = 0
    if task >= 0:
        P = tl.load(lengths_ptr + task)
    if P > 0:
        pk = task_pointer(pk_table, task, out_ptr) + g.to(tl.int64) * P * D
        pv = task_pointer(pv_table, task, out_ptr) + g.to(tl.int64) * P * D
        for n in range(0, P, BN):
            cols = n + tl.arange(0, BN)
            s = _dot(q, tl.trans(_load_rows(pk, cols, D, P, d, D, EVEN)), PRECISION) * scaling
            if FORM == RELU:
                p = tl.where((cols < P)[None, :], tl.maximum(s, 0.0), 0.0)
            else:
                s = tl.where((cols < P)[None, :], s, float("-inf"))
                top = tl.maximum(m, tl.max(s, 1))
                p = tl.exp2((s - top[:, None]) * LOG2E)
                old = tl.exp2((m - top) * LOG2E)
                acc *= old[:, None]
                total = total * old + tl.sum(p, 1)
                m = top
            p *= _factor(seed_ptr, threshold, keep, line, cols.to(tl.int64) + PREFIX_COLUMN, DROPOUT)
            x = _load_rows(pv, cols, D, P, d, D, EVEN)
            acc += _dot(p.to(x.dtype), x, PRECISION)
    prefix_m, prefix_total = m, total
    extra = acc
    prefix_lse = m + tl.log2(total) * LN2
    if FORM != SOFTMAX:
        if FORM == NO_GATING:
            extra = acc * tl.where(total > 0.0, 1.0 / total, 0.0)[:, None]
        m = tl.full((BM,), float("-inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, BD), tl.float32)
    k_ptr += b * k_b + g * k_h
    v_ptr += b * v_b + g * v_h
    end = TK
    if CAUSAL:
        end = tl.minimum(TK, tl.maximum(0, (tl.program_id(0) + 1) * BM + TK - TQ))
    for n in range(0, end, BN):
        cols = n + tl.arange(0, BN)
        s = _dot(q, tl.trans(_load_rows(k_ptr, cols, k_t, TK, d, D, EVEN)), PRECISION) * scaling
        s = _real_scores(
            s, rows, cols, b, h, TQ, TK, mask_ptr, mask_b, mask_h, mask_q, mask_k, bias_ptr, bias_b, bias_h, bias_q,
            bias_k, CAUSAL, MASK, BIAS,
        )  # fmt: skip
        top = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2((s - _shift(top)[:, None]) * LOG2E)
        old = tl.exp2((m - _shift(top)) * LOG2E)
        acc *= old[:, None]
        total = total * old + tl.sum(p, 1)
        m = top
        p *= _factor(seed_ptr, threshold, keep, line, cols, DROPOUT)
        x = _load_rows(v_ptr, cols, v_t, TK, d, D, EVEN)
        acc += _dot(p.to(x.dtype), x, PRECISION)
    inverse = tl.where(total > 0.0, 1.0 / total, 0.0)
    out = acc * inverse[:, None]
    gate = tl.zeros((BM,), tl.float32)
    lse = m + tl.log2(total) * LN2
    if FORM == SOFTMAX:
        if P > 0:
            gate = prefix_total * tl.exp2((prefix_m - m) * LOG2E) * inverse
        prefix_lse = lse
    else:
        out += extra
    live = rows < TQ
    tl.store(
        out_ptr + b * o_b + h * o_h + (rows[:, None] * o_t + d[None, :]), out.to(out_ptr.dtype.element_ty),
        mask=live[:, None] & (d < D)[None, :],
    )  # fmt: skip
    tl.store(gate_ptr + line, gate, mask=live)
    tl.store(lse_ptr + line, lse, mask=live)
    tl.store(lse_ptr + plane + line, prefix_lse, mask=live)


@triton.jit
def prefix_attention_dq_kernel(
    q_ptr, k_ptr, v_ptr, pk_table, pv_table, lengths_ptr, ids_ptr, mask_ptr, bias_ptr, seed_ptr, out_ptr, do_ptr,
    gate_ptr, dgate_ptr, lse_ptr, delta_ptr, dq_ptr, dscores_ptr, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h,
    o_t, mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q, bias_k, plane, H, G, TQ, TK, D, scaling, threshold,
    keep,
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
    q = _load_rows(q_ptr, rows, q_t, TQ, d, D, EVEN)
    do = _load_rows(do_ptr, rows, o_t, TQ, d, D, EVEN)
    o = _load_rows(out_ptr + b * o_b + h * o_h, rows, o_t, TQ, d, D, EVEN)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    lse = _shift(tl.load(lse_ptr + line, mask=live, other=0.0))
    prefix_lse = _shift(tl.load(lse_ptr + plane + line, mask=live, other=0.0))
    dgate = tl.zeros((BM,), tl.float32)
    if DGATE:
        dgate = tl.load(dgate_ptr + line, mask=live, other=0.0)
        delta += dgate * tl.load(gate_ptr + line, mask=live, other=0.0)
    acc = tl.zeros((BM, BD), tl.float32)
    prefix_delta = delta
    task = tl.load(ids_ptr + b)
    P = 0
    if task >= 0:
        P = tl.load(lengths_ptr + task)
    if P > 0:
        pk = task_pointer(pk_table, task, q_ptr) + g.to(tl.int64) * P * D
        pv = task_pointer(pv_table, task, q_ptr) + g.to(tl.int64) * P * D
        if FORM != SOFTMAX:
            # dO . (prefix part of the output): no_gating's prefix subtracts it, the real keys the rest.
            prefix_delta = tl.zeros((BM,), tl.float32)
            for n in range(0, P, BN):
                cols = n + tl.arange(0, BN)
                x = _load_rows(pk, cols, D, P, d, D, EVEN)
                s = _dot_rows(q, q_ptr, rows, q_t, TQ, x, pk, cols, D, P, D, PRECISION, WIDE) * scaling
                p = tl.maximum(s, 0.0) if FORM == RELU else tl.exp2((s - prefix_lse[:, None]) * LOG2E)
                x = _load_rows(pv, cols, D, P, d, D, EVEN)
                dp = _dot_rows(do, do_ptr, rows, o_t, TQ, x, pv, cols, D, P, D, PRECISION, WIDE)
                dp *= _factor(seed_ptr, threshold, keep, line, cols.to(tl.int64) + PREFIX_COLUMN, DROPOUT)
                prefix_delta += tl.sum(tl.where((cols < P)[None, :], p * dp, 0.0), 1)
            delta -= prefix_delta
        for n in range(0, P, BN):
            cols = n + tl.arange(0, BN)
            x = _load_rows(pk, cols, D, P, d, D, EVEN)
            s = _dot_rows(q, q_ptr, rows, q_t, TQ, x, pk, cols, D, P, D, PRECISION, WIDE) * scaling
            y = _load_rows(pv, cols, D, P, d, D, EVEN)
            dp = _dot_rows(do, do_ptr, rows, o_t, TQ, y, pv, cols, D, P, D, PRECISION, WIDE)
            dp *= _factor(seed_ptr, threshold, keep, line, cols.to(tl.int64) + PREFIX_COLUMN, DROPOUT)
            if FORM == RELU:
                ds = tl.where(s > 0.0, dp, 0.0)
            else:
                ds = tl.exp2((s - prefix_lse[:, None]) * LOG2E) * (dp + dgate[:, None] - prefix_delta[:, None])
            ds = tl.where((cols < P)[None, :] & live[:, None], ds, 0.0)
            acc += _dot(ds.to(x.dtype), x, PRECISION)
    tl.store(delta_ptr + line, delta, mask=live)
    tl.store(delta_ptr + plane + line, prefix_delta, mask=live)
    k_ptr += b * k_b + g * k_h
    v_ptr += b * v_b + g * v_h
    dscores_ptr += bh.to(tl.int64) * TQ * TK
    end = TK
    if CAUSAL and not DSCORES:
        end = tl.minimum(TK, tl.maximum(0, (tl.program_id(0) + 1) * BM + TK - TQ))
    for n in range(0, end, BN):
        cols = n + tl.arange(0, BN)
        x = _load_rows(k_ptr, cols, k_t, TK, d, D, EVEN)
        s = _dot_rows(q, q_ptr, rows, q_t, TQ, x, k_ptr, cols, k_t, TK, D, PRECISION, WIDE) * scaling
        s = _real_scores(
            s, rows, cols, b, h, TQ, TK, mask_ptr, mask_b, mask_h, mask_q, mask_k, bias_ptr, bias_b, bias_h, bias_q,
            bias_k, CAUSAL, MASK, BIAS,
        )  # fmt: skip
        p = tl.exp2((s - lse[:, None]) * LOG2E)
        y = _load_rows(v_ptr, cols, v_t, TK, d, D, EVEN)
        dp = _dot_rows(do, do_ptr, rows, o_t, TQ, y, v_ptr, cols, v_t, TK, D, PRECISION, WIDE)
        dp *= _factor(seed_ptr, threshold, keep, line, cols, DROPOUT)
        ds = p * (dp - delta[:, None])
        if DSCORES:
            at = rows[:, None] * TK + cols[None, :]
            tl.store(dscores_ptr + at, ds, mask=live[:, None] & (cols < TK)[None, :])
        acc += _dot(ds.to(x.dtype), x, PRECISION)
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
    k = _load_rows(k_ptr + b * k_b + g * k_h, cols, k_t, TK, d, D, EVEN)
    v = _load_rows(v_ptr + b * v_b + g * v_h, cols, v_t, TK, d, D, EVEN)
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
            q = _load_rows(q_ptr + b * q_b + h * q_h, rows, q_t, TQ, d, D, EVEN)
            do = _load_rows(do_ptr + b * o_b + h * o_h, rows, o_t, TQ, d, D, EVEN)
            lse = _shift(tl.load(lse_ptr + line, mask=live, other=0.0))
            delta = tl.load(delta_ptr + line, mask=live, other=0.0)
            s = _dot(q, tl.trans(k), PRECISION) * scaling
            s = _real_scores(
                s, rows, cols, b, h, TQ, TK, mask_ptr, mask_b, mask_h, mask_q, mask_k, bias_ptr, bias_b, bias_h, bias_q,
                bias_k, CAUSAL, MASK, BIAS,
            )  # fmt: skip
            p = tl.exp2((s - lse[:, None]) * LOG2E)
            keeps = _factor(seed_ptr, threshold, keep, line, cols, DROPOUT)
            dv += _dot(tl.trans((p * keeps).to(do.dtype)), do, PRECISION)
            dp = _dot(do, tl.trans(v), PRECISION) * keeps
            ds = p * (dp - delta[:, None])
            dk += _dot(tl.trans(ds.to(q.dtype)), q, PRECISION)
    at = cols[:, None] * dk_t + d[None, :]
    dk_ptr += b * dk_b + g * dk_h
    dv_ptr += b * dk_b + g * dk_h
    inside = (cols < TK)[:, None] & (d < D)[None, :]
    tl.store(dk_ptr + at, (dk * scaling).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def prefix_attention_dprefix_kernel(
    q_ptr, pk_table, pv_table, lengths_ptr, order_ptr, starts_ptr, seed_ptr, do_ptr, dgate_ptr, lse_ptr, delta_ptr,
    dpk_table, dpv_table, q_b, q_h, q_t, o_b, o_h, o_t, plane, H, G, TQ, D, scaling, threshold, keep,
    FORM: tl.constexpr, DROPOUT: tl.constexpr, DGATE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One program: BN prefix columns of one task and key head; runs over the task's rows in order, without atomics."""
    task, g = tl.program_id(1), tl.program_id(2)
    P = tl.load(lengths_ptr + task)
    cols, d = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BD)
    if tl.program_id(0) * BN >= P:
        return
    offset = g.to(tl.int64) * P * D
    pk = _load_rows(task_pointer(pk_table, task, q_ptr) + offset, cols, D, P, d, D, EVEN)
    pv = _load_rows(task_pointer(pv_table, task, q_ptr) + offset, cols, D, P, d, D, EVEN)
    dk, dv = tl.zeros((BN, BD), tl.float32), tl.zeros((BN, BD), tl.float32)
    rep = H // G
    for j in range(tl.load(starts_ptr + task), tl.load(starts_ptr + task + 1)):
        b = tl.load(order_ptr + j)
        for r in range(0, rep):
            h = g * rep + r
            for start in range(0, TQ, BM):
                rows = start + tl.arange(0, BM)
                live, line = rows < TQ, (b * H + h) * TQ + rows
                q = _load_rows(q_ptr + b * q_b + h * q_h, rows, q_t, TQ, d, D, EVEN)
                do = _load_rows(do_ptr + b * o_b + h * o_h, rows, o_t, TQ, d, D, EVEN)
                s = _dot(q, tl.trans(pk), PRECISION) * scaling
                keeps = _factor(seed_ptr, threshold, keep, line, cols.to(tl.int64) + PREFIX_COLUMN, DROPOUT)
                dp = _dot(do, tl.trans(pv), PRECISION) * keeps
                if FORM == RELU:
                    p = tl.maximum(s, 0.0)
                    ds = tl.where(s > 0.0, dp, 0.0)
                else:
                    lse = _shift(tl.load(lse_ptr + plane + line, mask=live, other=0.0))
                    p = tl.exp2((s - lse[:, None]) * LOG2E)
                    if DGATE:
                        dp += tl.load(dgate_ptr + line, mask=live, other=0.0)[:, None]
                    ds = p * (dp - tl.load(delta_ptr + plane + line, mask=live, other=0.0)[:, None])
                p, ds = tl.where(live[:, None], p * keeps, 0.0), tl.where(live[:, None], ds, 0.0)
                dv += _dot(tl.trans(p.to(do.dtype)), do, PRECISION)
                dk += _dot(tl.trans(ds.to(q.dtype)), q, PRECISION)
    at = cols[:, None] * D + d[None, :]
    inside = (cols < P)[:, None] & (d < D)[None, :]
    dpk, dpv = task_pointer(dpk_table, task, q_ptr) + offset, task_pointer(dpv_table, task, q_ptr) + offset
    tl.store(dpk + at, (dk * scaling).to(q_ptr.dtype.element_ty), mask=inside)
    tl.store(dpv + at, dv.to(q_ptr.dtype.element_ty), mask=inside)
