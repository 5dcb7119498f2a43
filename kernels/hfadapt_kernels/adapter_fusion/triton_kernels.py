"""Triton kernels of adapter_fusion: scores, softmax over the adapters and weighting, adapters reached by pointer."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import dropout_factor, task_pointer, task_size

__all__ = ["adapter_fusion_bwd_kernel", "adapter_fusion_fwd_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def _tile(ptr, rows, stride, live, cols, width):
    inside = live[:, None] & (cols < width)[None, :]
    return tl.load(ptr + rows[:, None] * stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _column(ptr, rows, stride, live):
    return tl.load(ptr + rows * stride, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _keep(seed_ptr, threshold, keep, rows, n, DROPOUT: tl.constexpr):
    if DROPOUT:
        return dropout_factor(seed_ptr, threshold, keep, rows, n + tl.zeros_like(rows))
    else:
        return 1.0


@triton.jit
def _weight_grad(
    g_ptr, gw_ptr, z_ptr, at, n, rows, r, live, R, M, N, BIASED: tl.constexpr, GRAD_WEIGHTS: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Gradient of adapter n's weight: ``g . z``, of the constant 1 beside z, and what comes from outside."""
    dp = tl.zeros((BM,), tl.float32)
    for c in range(0, R, BR):
        dp += tl.sum(_tile(g_ptr + at, rows, M, live, c + r, R) * _tile(z_ptr, rows, R, live, c + r, R), 1)
    if BIASED:
        dp += _column(g_ptr + M - N + n, rows, M, live)
    if GRAD_WEIGHTS:
        dp += _column(gw_ptr + n, rows, N, live)
    return dp


@triton.jit
def adapter_fusion_fwd_kernel(
    y_ptr, hidden_ptr, table_ptr, shift_ptr, seed_ptr, out_ptr, weights_ptr, tokens, M, N, inverse_temperature,
    threshold, keep, BIASED: tl.constexpr, SHIFT: tl.constexpr, DROPOUT: tl.constexpr, BM: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens. Scores wait in the place of the weights until their maximum and sum are known.

    The table's columns: the adapters' ranks, and where their bottlenecks lie.
    """
    first = tl.program_id(0).to(tl.int64) * BM
    rows, r = tl.arange(0, BM), tl.arange(0, BR)
    live = first + rows < tokens
    # Offsets within the block fit 32 bits: blocks of 64-bit ones would take twice the registers.
    y_ptr += first * M
    out_ptr += first * M
    weights_ptr += first * N
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    at = 0
    for n in range(0, N):
        R = task_size(table_ptr, N, n, 0, 1)
        z_ptr = task_pointer(hidden_ptr, table_ptr, N, n, 1) + first * R
        s = tl.zeros((BM,), tl.float32)
        for c in range(0, R, BR):
            s += tl.sum(_tile(y_ptr + at, rows, M, live, c + r, R) * _tile(z_ptr, rows, R, live, c + r, R), 1)
        if BIASED:
            s += _column(y_ptr + M - N + n, rows, M, live)
        if SHIFT:
            s += _column(shift_ptr + first, rows, 1, live)
        s *= _keep(seed_ptr, threshold, keep, first + rows, n, DROPOUT) * inverse_temperature
        tl.store(weights_ptr + rows * N + n, s, mask=live)
        higher = tl.maximum(top, s)
        total = total * tl.exp(top - higher) + tl.exp(s - higher)
        top = higher
        at += R
    # A row's scores may be stored by one thread and read back below by another.
    tl.debug_barrier()
    at = 0
    for n in range(0, N):
        R = task_size(table_ptr, N, n, 0, 1)
        z_ptr = task_pointer(hidden_ptr, table_ptr, N, n, 1) + first * R
        p = tl.exp(_column(weights_ptr + n, rows, N, live) - top) / total
        tl.store(weights_ptr + rows * N + n, p, mask=live)
        for c in range(0, R, BR):
            x = _tile(z_ptr, rows, R, live, c + r, R) * p[:, None]
            target = out_ptr + at + rows[:, None] * M + (c + r)[None, :]
            tl.store(target, x.to(out_ptr.dtype.element_ty), mask=live[:, None] & (c + r < R)[None, :])
        if BIASED:
            tl.store(out_ptr + M - N + n + rows * M, p.to(out_ptr.dtype.element_ty), mask=live)
        at += R


@triton.jit
def adapter_fusion_bwd_kernel(
    g_ptr, gw_ptr, weights_ptr, y_ptr, hidden_ptr, table_ptr, seed_ptr, dy_ptr, dz_ptr, dshift_ptr, tokens, M, N,
    inverse_temperature, threshold, keep, BIASED: tl.constexpr, SHIFT: tl.constexpr, GRAD_WEIGHTS: tl.constexpr,
    NEED_HIDDEN: tl.constexpr, DROPOUT: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens; the first pass sums p . dp, the second writes.

    The table's columns: those of the forward, and where the gradients of the bottlenecks lie.
    """
    first = tl.program_id(0).to(tl.int64) * BM
    rows, r = tl.arange(0, BM), tl.arange(0, BR)
    live = first + rows < tokens
    g_ptr += first * M
    y_ptr += first * M
    dy_ptr += first * M
    gw_ptr += first * N
    weights_ptr += first * N
    delta, moved = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    at = 0
    for n in range(0, N):
        R = task_size(table_ptr, N, n, 0, 1)
        z_ptr = task_pointer(hidden_ptr, table_ptr, N, n, 1) + first * R
        dp = _weight_grad(g_ptr, gw_ptr, z_ptr, at, n, rows, r, live, R, M, N, BIASED, GRAD_WEIGHTS, BM, BR)
        delta += _column(weights_ptr + n, rows, N, live) * dp
        at += R
    at = 0
    for n in range(0, N):
        R = task_size(table_ptr, N, n, 0, 1)
        z_ptr = task_pointer(hidden_ptr, table_ptr, N, n, 1) + first * R
        p = _column(weights_ptr + n, rows, N, live)
        dp = _weight_grad(g_ptr, gw_ptr, z_ptr, at, n, rows, r, live, R, M, N, BIASED, GRAD_WEIGHTS, BM, BR)
        ds = p * (dp - delta) * _keep(seed_ptr, threshold, keep, first + rows, n, DROPOUT) * inverse_temperature
        moved += ds
        for c in range(0, R, BR):
            inside = live[:, None] & (c + r < R)[None, :]
            target = dy_ptr + at + rows[:, None] * M + (c + r)[None, :]
            z = _tile(z_ptr, rows, R, live, c + r, R)
            tl.store(target, (z * ds[:, None]).to(dy_ptr.dtype.element_ty), mask=inside)
            if NEED_HIDDEN:
                dz = _tile(g_ptr + at, rows, M, live, c + r, R) * p[:, None]
                dz += _tile(y_ptr + at, rows, M, live, c + r, R) * ds[:, None]
                own = task_pointer(dz_ptr, table_ptr, N, n, 2) + first * R + (rows[:, None] * R + (c + r)[None, :])
                tl.store(own, dz.to(y_ptr.dtype.element_ty), mask=inside)
        if BIASED:
            tl.store(dy_ptr + M - N + n + rows * M, ds.to(dy_ptr.dtype.element_ty), mask=live)
        at += R
    if SHIFT:
        tl.store(dshift_ptr + first + rows, moved.to(dshift_ptr.dtype.element_ty), mask=live)
