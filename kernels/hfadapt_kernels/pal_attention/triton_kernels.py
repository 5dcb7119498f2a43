"""The Triton kernel of pal_attention; its attention is that of prefix_attention without a prefix. Imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import activate, add_product, task_pointer

__all__ = ["pal_linear_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def pal_linear_kernel(
    x_ptr, out_ptr, pre_ptr, weight_ptr, bias_ptr, table_ptr, ids_ptr, tasks, T, K, N, x_t, out_t, w_n, w_k,
    ACT: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``out = act(x W_t^T + b_t)`` (``+=`` with ADD), zeros without a task; one program: BM tokens of one sequence.

    Element (n, k) of W_t lies at ``n * w_n + k * w_k``: the same kernel multiplies by W_t^T and by W_t. The table
    says where weights and biases lie.
    """
    row = tl.program_id(0).to(tl.int64)
    task = tl.load(ids_ptr + row)
    local = tl.arange(0, BM)
    live = tl.program_id(1) * BM + local < T
    first = row * T + tl.program_id(1) * BM
    x_ptr += first * x_t
    out_ptr += first * out_t
    pre_ptr += first * N
    rn = tl.program_id(2) * BN + tl.arange(0, BN)
    in_n = rn < N
    both = live[:, None] & in_n[None, :]
    at = local[:, None] * out_t + rn[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    if task >= 0:
        weight = task_pointer(weight_ptr, table_ptr, tasks, task, 0)
        acc = add_product(acc, x_ptr, local[:, None] * x_t, live, weight, rn, in_n, w_n, w_k, K, PRECISION, BK)
        if BIAS:
            bias = task_pointer(bias_ptr, table_ptr, tasks, task, 1)
            acc += tl.load(bias + rn, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if SAVE:
            tl.store(pre_ptr + local[:, None] * N + rn[None, :], acc.to(pre_ptr.dtype.element_ty), mask=both)
        acc = activate(acc, ACT)
    if ADD:
        acc += tl.load(out_ptr + at, mask=both, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=both)
