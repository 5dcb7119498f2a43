"""What the Triton kernels of prefix_attention share: loads of rows, products, scores. Imports triton: load it lazily.

Scores are in natural units; ``2 ** ((s - m) * log2 e)`` keeps the lowest finite mask value finite. A row that sees
nothing has maximum -inf, which `shift` replaces, so its sums are 0 and its result is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton.common import dropout_factor

__all__ = [
    "LN2",
    "LOG2E",
    "NO_GATING",
    "PREFIX_COLUMN",
    "RELU",
    "SOFTMAX",
    "dot",
    "dot_rows",
    "factor",
    "load_rows",
    "real_scores",
    "shift",
]

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
def shift(m):
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def load_rows(ptr, rows, stride, count, cols, D, EVEN: tl.constexpr):
    """[rows, cols] of a tensor whose last axis has stride 1; 0 outside. EVEN: cols covers exactly D."""
    # 32-bit offsets within one head (checked by the host): 64-bit ones would take half of the registers.
    at = rows[:, None] * stride + cols[None, :]
    if EVEN:
        return tl.load(ptr + at, mask=(rows < count)[:, None], other=0.0)
    else:
        return tl.load(ptr + at, mask=(rows < count)[:, None] & (cols < D)[None, :], other=0.0)


@triton.jit
def dot_rows(
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
            x = load_rows(a_ptr, a_rows, a_stride, a_count, d, D, False)
            out += dot(x, tl.trans(load_rows(b_ptr, b_rows, b_stride, b_count, d, D, False)), PRECISION)
        return out
    else:
        return dot(a, tl.trans(b), PRECISION)


@triton.jit
def real_scores(
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
def factor(seed_ptr, threshold, keep, line, cols, DROPOUT: tl.constexpr):
    if DROPOUT:
        return dropout_factor(seed_ptr, threshold, keep, line[:, None], cols[None, :])
    else:
        return 1.0
