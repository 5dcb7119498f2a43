"""The Triton kernel of pal_attention; its attention is that of prefix_attention without a prefix. Imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import activate

__all__ = ["pal_linear_kernel"]


@triton.jit
def pal_linear_kernel(
    x_ptr, out_ptr, pre_ptr, weight_table, bias_table, ids_ptr, T, K, N, x_t, out_t, w_n, w_k,
    ACT: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``out = act(x W_t^T + b_t)`` (``+=`` with ADD), zeros without a task; one program: BM tokens of one sequence.

    Element (n, k) of W_t lies at ``n * w_n + k * w_k``: the same kernel multiplies by W_t^T and by W_t.
    """
    row = tl.program_id(0).to(tl.int64)
    task = tl.load(ids_ptr + row)
    token = tl.program_id(1) * BM + tl.arange(0, BM)
    live = token < T
    rm = row * T + token
    rn = tl.program_id(2) * BN + tl.arange(0, BN)
    in_n = rn < N
    both = live[:, None] & in_n[None, :]
    at = rm[:, None] * out_t + rn[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    if task >= 0:
        weight_ptr = tl.load(weight_table + task).to(tl.pointer_type(pre_ptr.dtype.element_ty))
        for k in range(0, K, BK):
            rk = k + tl.arange(0, BK)
            in_k = rk < K
            x = tl.load(x_ptr + rm[:, None] * x_t + rk[None, :], mask=live[:, None] & in_k[None, :], other=0.0)
            spot = rn[None, :] * w_n + rk[:, None] * w_k
            w = tl.load(weight_ptr + spot, mask=in_k[:, None] & in_n[None, :], other=0.0)
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
        if BIAS:
            bias_ptr = tl.load(bias_table + task).to(tl.pointer_type(pre_ptr.dtype.element_ty))
            acc += tl.load(bias_ptr + rn, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if SAVE:
            tl.store(pre_ptr + rm[:, None] * N + rn[None, :], acc.to(pre_ptr.dtype.element_ty), mask=both)
        acc = activate(acc, ACT)
    if ADD:
        acc += tl.load(out_ptr + at, mask=both, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=both)
