"""The forward Triton kernel of prefix_attention: flash attention whose first columns come from the task's prefix."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import task_pointer, task_size
from .triton_scores import (
    LN2,
    LOG2E,
    NO_GATING,
    PREFIX_COLUMN,
    RELU,
    SOFTMAX,
    dot,
    factor,
    load_rows,
    real_scores,
    shift,
)

__all__ = ["prefix_attention_fwd_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def prefix_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, pk_ptr, pv_ptr, table_ptr, ids_ptr, mask_ptr, bias_ptr, seed_ptr, out_ptr, gate_ptr,
    lse_ptr, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t, mask_b, mask_h, mask_q, mask_k, bias_b, bias_h,
    bias_q, bias_k, tasks, plane, H, G, TQ, TK, D, scaling, threshold, keep,
    FORM: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """One program: BM queries of one head of one batch row.

    The table's columns: the lengths of the tasks' prefixes, where their keys and values lie, and, in the backward,
    where the gradients of both lie.
    """
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), bh % H
    g = h // (H // G)
    rows, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    line = bh * TQ + rows
    q = load_rows(q_ptr + b * q_b + h * q_h, rows, q_t, TQ, d, D, EVEN)
    m = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    task = tl.load(ids_ptr + b)
    P = 0
    if task >= 0:
        P = task_size(table_ptr, tasks, task, 0, 1)
    if P > 0:
        pk = task_pointer(pk_ptr, table_ptr, tasks, task, 1) + g.to(tl.int64) * P * D
        pv = task_pointer(pv_ptr, table_ptr, tasks, task, 2) + g.to(tl.int64) * P * D
        for n in range(0, P, BN):
            cols = n + tl.arange(0, BN)
            s = dot(q, tl.trans(load_rows(pk, cols, D, P, d, D, EVEN)), PRECISION) * scaling
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
            p *= factor(seed_ptr, threshold, keep, line, cols.to(tl.int64) + PREFIX_COLUMN, DROPOUT)
            x = load_rows(pv, cols, D, P, d, D, EVEN)
            acc += dot(p.to(x.dtype), x, PRECISION)
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
        s = dot(q, tl.trans(load_rows(k_ptr, cols, k_t, TK, d, D, EVEN)), PRECISION) * scaling
        s = real_scores(
            s, rows, cols, b, h, TQ, TK, mask_ptr, mask_b, mask_h, mask_q, mask_k, bias_ptr, bias_b, bias_h, bias_q,
            bias_k, CAUSAL, MASK, BIAS,
        )  # fmt: skip
        top = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2((s - shift(top)[:, None]) * LOG2E)
        old = tl.exp2((m - shift(top)) * LOG2E)
        acc *= old[:, None]
        total = total * old + tl.sum(p, 1)
        m = top
        p *= factor(seed_ptr, threshold, keep, line, cols, DROPOUT)
        x = load_rows(v_ptr, cols, v_t, TK, d, D, EVEN)
        acc += dot(p.to(x.dtype), x, PRECISION)
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
