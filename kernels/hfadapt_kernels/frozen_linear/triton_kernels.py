"""The Triton kernel of frozen_linear. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import activate

__all__ = ["frozen_linear_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def frozen_linear_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, out_ptr, M, K, N, x_m, w_n, w_k,
    ACT: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``out = act((x W^T) * scale + bias)``; element (n, k) of W lies at ``n * w_n + k * w_k``.

    NARROW: bfloat16 numbers are multiplied, which holds int8 weights exactly; else W takes the type of x.
    """
    first, column = tl.program_id(0).to(tl.int64) * BM, tl.program_id(1).to(tl.int64) * BN
    rows, cols = tl.arange(0, BM), tl.arange(0, BN)
    in_m, in_n = first + rows < M, column + cols < N
    x_ptr += first * x_m
    w_ptr += column * w_n
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        rk = k + tl.arange(0, BK)
        in_k = rk < K
        x = tl.load(x_ptr + rows[:, None] * x_m + rk[None, :], mask=in_m[:, None] & in_k[None, :], other=0.0)
        w = tl.load(w_ptr + cols[None, :] * w_n + rk[:, None] * w_k, mask=in_k[:, None] & in_n[None, :], other=0)
        if NARROW:
            # Through float32: no card converts 8-bit integers to bfloat16 in one step.
            x, w = x.to(tl.float32).to(tl.bfloat16), w.to(tl.float32).to(tl.bfloat16)
        acc = tl.dot(x, w.to(x.dtype), acc, input_precision=PRECISION)
    if SCALE:
        acc *= tl.load(scale_ptr + column + cols, mask=in_n, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        acc += tl.load(bias_ptr + column + cols, mask=in_n, other=0.0).to(tl.float32)[None, :]
    at = (first + rows)[:, None] * N + (column + cols)[None, :]
    tl.store(out_ptr + at, activate(acc, ACT).to(out_ptr.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])
