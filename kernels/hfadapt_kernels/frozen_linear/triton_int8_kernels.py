"""The Triton kernel of frozen_linear's int8 rows. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import activate

__all__ = ["int8_linear_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def _row_piece(x_ptr, rows, in_m, x_m, plain_ptr, k, K, BK: tl.constexpr, KEPT: tl.constexpr):
    """Inputs k to k + BK of some rows in float32, 0 in the columns that are kept in float32."""
    rk = k + tl.arange(0, BK)
    x = tl.load(x_ptr + rows[:, None] * x_m + rk[None, :], mask=in_m[:, None] & (rk < K)[None, :], other=0.0)
    x = x.to(tl.float32)
    if KEPT:
        plain = tl.load(plain_ptr + rk, mask=rk < K, other=0)
        x = tl.where((plain != 0)[None, :], x, 0.0)
    return x


@triton.jit
def int8_linear_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, plain_ptr, column_ptr, kept_ptr, out_ptr, M, K, N, kept, x_m,
    ACT: tl.constexpr, BIAS: tl.constexpr, KEPT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``out = act(float(q q') * (t s) + bias)``: W is int8 [N, K], rows of x are rounded to int8 here.

    KEPT: columns ``column_ptr`` [kept] of x are multiplied with ``kept_ptr`` [kept, N] in float64; ``plain_ptr`` [K]
    holds 0 for them. A row's largest number is found in a first pass over it.
    """
    first, column = tl.program_id(0).to(tl.int64) * BM, tl.program_id(1).to(tl.int64) * BN
    rows, cols = tl.arange(0, BM), tl.arange(0, BN)
    in_m, in_n = first + rows < M, column + cols < N
    x_ptr += first * x_m
    w_ptr += column * K
    # Of numbers without a sign the bits are in the numbers' order, infinity and NaN above all.
    most = tl.zeros((BM,), tl.int32)
    for k in range(0, K, BK):
        x = _row_piece(x_ptr, rows, in_m, x_m, plain_ptr, k, K, BK, KEPT)
        most = tl.maximum(most, tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1))
    whole = most < 0x7F800000
    # 2^-100, below which a row is rounded as if it were that large.
    size = tl.maximum(tl.where(whole, most, 0).to(tl.float32, bitcast=True), 7.888609052210118e-31)
    inverse = tl.div_rn(tl.full((BM,), 127.0, tl.float32), size)
    acc = tl.zeros((BM, BN), tl.int32)
    for k in range(0, K, BK):
        x = _row_piece(x_ptr, rows, in_m, x_m, plain_ptr, k, K, BK, KEPT)
        # 1.5 * 2^23 is so large that adding it rounds to integers, ties to even.
        near = (tl.where(whole[:, None], x, 0.0) * inverse[:, None] + 12582912.0) - 12582912.0
        rk = k + tl.arange(0, BK)
        w = tl.load(w_ptr + cols[None, :] * K + rk[:, None], mask=(rk < K)[:, None] & in_n[None, :], other=0)
        acc = tl.dot(near.to(tl.int8), w, acc, out_dtype=tl.int32)
    row_scale = tl.where(whole, tl.div_rn(size, tl.full((BM,), 127.0, tl.float32)), float("nan"))
    scale = tl.load(scale_ptr + column + cols, mask=in_n, other=0.0)
    y = acc.to(tl.float32) * (row_scale[:, None] * scale[None, :])
    if KEPT:
        more = tl.zeros((BM, BN), tl.float64)
        for j in range(kept):
            at = tl.load(column_ptr + j)
            value = tl.load(x_ptr + rows * x_m + at, mask=in_m, other=0.0).to(tl.float32).to(tl.float64)
            weight = tl.load(kept_ptr + j * N + column + cols, mask=in_n, other=0.0).to(tl.float64)
            more += value[:, None] * weight[None, :]
        y += more.to(tl.float32)
    if BIAS:
        y += tl.load(bias_ptr + column + cols, mask=in_n, other=0.0).to(tl.float32)[None, :]
    at = (first + rows)[:, None] * N + (column + cols)[None, :]
    tl.store(out_ptr + at, activate(y, ACT).to(out_ptr.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])
