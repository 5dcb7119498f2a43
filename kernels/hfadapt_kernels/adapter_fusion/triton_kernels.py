"""Triton kernels of adapter_fusion: scores, softmax over the adapters and weighting, adapters reached by pointer."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import dropout_factor

__all__ = ["adapter_fusion_bwd_kernel", "adapter_fusion_fwd_kernel"]

# pyright: reportGeneralTypeIssues=false


@triton.jit
def _tile(ptr, rows, stride, count, cols, width):
    inside = (rows < count)[:, None] & (cols < width)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _column(ptr, rows, stride, count, column):
    return tl.load(ptr + rows.to(tl.int64) * stride + column, mask=rows < count, other=0.0).to(tl.float32)


@triton.jit
def _keep(seed_ptr, threshold, keep, rows, n, DROPOUT: tl.constexpr):
    if DROPOUT:
        return dropout_factor(seed_ptr, threshold, keep, rows, n + tl.zeros_like(rows))
    else:
        return 1.0


@triton.jit
def adapter_fusion_fwd_kernel(
    y_ptr, hidden_table, ranks_ptr, shift_ptr, seed_ptr, out_ptr, weights_ptr, tokens, M, N, inverse_temperature,
    threshold, keep, BIASED: tl.constexpr, SHIFT: tl.constexpr, DROPOUT: tl.constexpr, BM: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens. Scores wait in the place of the weights until their maximum and sum are known."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live, r = rows < tokens, tl.arange(0, BR)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    at = 0
    for n in range(0, N):
        R = tl.load(ranks_ptr + n)
        z_ptr = tl.load(hidden_table + n).to(y_ptr.dtype)
        s = tl.zeros((BM,), tl.float32)
        for c in range(0, R, BR):
            s += tl.sum(_tile(y_ptr + at, rows, M, tokens, c + r, R) * _tile(z_ptr, rows, R, tokens, c + r, R), 1)
        if BIASED:
            s += _column(y_ptr, rows, M, tokens, M - N + n)
        if SHIFT:
            s += tl.load(shift_ptr + rows, mask=live, other=0.0).to(tl.float32)
        s *= _keep(seed_ptr, threshold, keep, rows, n, DROPOUT) * inverse_temperature
        tl.store(weights_ptr + rows.to(tl.int64) * N + n, s, mask=live)
        higher = tl.maximum(top, s)
        total = total * tl.exp(top - higher) + tl.exp(s - higher)
        top = higher
        at += R
    # A row's scores may be stored by one thread and read back below by another.
    tl.debug_barrier()
    at = 0
    for n in range(0, N):
        R = tl.load(ranks_ptr + n)
        z_ptr = tl.load(hidden_table + n).to(y_ptr.dtype)
        p = tl.exp(_column(weights_ptr, rows, N, tokens, n) - top) / total
        tl.store(weights_ptr + rows.to(tl.int64) * N + n, p, mask=live)
        for c in range(0, R, BR):
            x = _tile(z_ptr, rows, R, tokens, c + r, R) * p[:, None]
            target = out_ptr + rows.to(tl.int64)[:, None] * M + at + c + r[None, :]
            tl.store(target, x.to(out_ptr.dtype.element_ty), mask=live[:, None] & (c + r < R)[None, :])
        if BIASED:
            tl.store(out_ptr + rows.to(tl.int64) * M + M - N + n, p.to(out_ptr.dtype.element_ty), mask=live)
        at += R


@triton.jit
def adapter_fusion_bwd_kernel(
    g_ptr, gw_ptr, weights_ptr, y_ptr, hidden_table, ranks_ptr, seed_ptr, dy_ptr, dz_table, dshift_ptr, tokens, M, N,
    inverse_temperature, threshold, keep, BIASED: tl.constexpr, SHIFT: tl.constexpr, GRAD_WEIGHTS: tl.constexpr,
    NEED_HIDDEN: tl.constexpr, DROPOUT: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens; the first pass sums p . dp, the second writes."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live, r = rows < tokens, tl.arange(0, BR)
    delta, moved = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    at = 0
    for n in range(0, N):
        R = tl.load(ranks_ptr + n)
        z_ptr = tl.load(hidden_table + n).to(y_ptr.dtype)
        dp = tl.zeros((BM,), tl.float32)
        for c in range(0, R, BR):
            dp += tl.sum(_tile(g_ptr + at, rows, M, tokens, c + r, R) * _tile(z_ptr, rows, R, tokens, c + r, R), 1)
        if BIASED:
            dp += _column(g_ptr, rows, M, tokens, M - N + n)
        if GRAD_WEIGHTS:
            dp += _column(gw_ptr, rows, N, tokens, n)
        delta += _column(weights_ptr, rows, N, tokens, n) * dp
        at += R
    at = 0
    for n in range(0, N):
        R = tl.load(ranks_ptr + n)
        z_ptr = tl.load(hidden_table + n).to(y_ptr.dtype)
        p = _column(weights_ptr, rows, N, tokens, n)
        dp = tl.zeros((BM,), tl.float32)
        for c in range(0, R, BR):
            dp += tl.sum(_tile(g_ptr + at, rows, M, tokens, c + r, R) * _tile(z_ptr, rows, R, tokens, c + r, R), 1)
        if BIASED:
            dp += _column(g_ptr, rows, M, tokens, M - N + n)
        if GRAD_WEIGHTS:
            dp += _column(gw_ptr, rows, N, tokens, n)
        ds = p * (dp - delta) * _keep(seed_ptr, threshold, keep, rows, n, DROPOUT) * inverse_temperature
        moved += ds
        for c in range(0, R, BR):
            inside = live[:, None] & (c + r < R)[None, :]
            target = rows.to(tl.int64)[:, None] * M + at + c + r[None, :]
            z = _tile(z_ptr, rows, R, tokens, c + r, R)
            tl.store(dy_ptr + target, (z * ds[:, None]).to(dy_ptr.dtype.element_ty), mask=inside)
            if NEED_HIDDEN:
                dz = _tile(g_ptr + at, rows, M, tokens, c + r, R) * p[:, None]
                dz += _tile(y_ptr + at, rows, M, tokens, c + r, R) * ds[:, None]
                dz_ptr = tl.load(dz_table + n).to(y_ptr.dtype)
                own = rows.to(tl.int64)[:, None] * R + c + r[None, :]
                tl.store(dz_ptr + own, dz.to(y_ptr.dtype.element_ty), mask=inside)
        if BIASED:
            tl.store(dy_ptr + rows.to(tl.int64) * M + M - N + n, ds.to(dy_ptr.dtype.element_ty), mask=live)
        at += R
    if SHIFT:
        tl.store(dshift_ptr + rows, moved.to(dshift_ptr.dtype.element_ty), mask=live)
