"""What the Triton kernels share: activations, dropout, per-task pointers, products. Imports triton: load it lazily."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "activate", "activate_derivative", "add_product", "dropout_factor", "task_pointer", "task_scale", "task_size",
]  # fmt: skip

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def activate(x, CODE: tl.constexpr):
    """Activation CODE (see activations.py) of float32 x."""
    if CODE == 1:
        return tl.maximum(x, 0.0)
    elif CODE == 2:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif CODE == 3:
        return 0.5 * x * (1.0 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif CODE == 4:
        return x * tl.sigmoid(x)
    elif CODE == 5:
        return _tanh(x)
    else:
        return x


@triton.jit
def activate_derivative(x, CODE: tl.constexpr):
    """Derivative of activation CODE at float32 x."""
    if CODE == 1:
        return tl.where(x > 0.0, 1.0, 0.0)
    elif CODE == 2:
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif CODE == 3:
        t = _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * x * x)
    elif CODE == 4:
        s = tl.sigmoid(x)
        return s * (1.0 + x * (1.0 - s))
    elif CODE == 5:
        t = _tanh(x)
        return 1.0 - t * t
    else:
        return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_factor(seed_ptr, threshold, scale, rows, cols):
    """0 or ``scale`` for every (row, column) pair; rows and cols broadcast. The arithmetic of dropout.py."""
    seed = tl.load(seed_ptr)
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    row_hash = _mix(rows.to(tl.uint32) ^ low) ^ high
    bits = _mix(row_hash + cols.to(tl.uint32) * 0x9E3779B9)
    # In 32 bits: a block of 64-bit numbers would take as many registers again as the scores.
    return tl.where(bits >= threshold.to(tl.uint32), scale, 0.0)


@triton.jit
def task_pointer(first_ptr, table_ptr, tasks, task, COLUMN: tl.constexpr):
    """Where a task's tensor lies: column COLUMN of the table says how far from the first task's.

    The host sees to it that 16 divides all addresses, which is what makes wide loads possible.
    """
    ALIGN: tl.constexpr = 128 // first_ptr.dtype.element_ty.primitive_bitwidth
    return first_ptr + tl.multiple_of(tl.load(table_ptr + COLUMN * tasks + task), ALIGN)


@triton.jit
def task_size(table_ptr, tasks, task, COLUMN: tl.constexpr, ALIGN: tl.constexpr):
    """A size of a task (its rank, the length of its prefix) that ALIGN divides."""
    return tl.multiple_of(tl.load(table_ptr + COLUMN * tasks + task).to(tl.int32), ALIGN)


@triton.jit
def task_scale(table_ptr, tasks, task, COLUMN: tl.constexpr):
    """A float32 number of a task, whose bits the table holds."""
    return tl.load(table_ptr + COLUMN * tasks + task).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def add_product(
    acc, x_ptr, x_at, live, w_ptr, cols, in_cols, w_col, w_k, K, PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``acc + x w``: x is [rows, K] at offsets ``x_at`` [rows, 1], w is [K, cols] with strides (w_k, w_col)."""
    for k in range(0, K, BK):
        rk = k + tl.arange(0, BK)
        in_k = rk < K
        x = tl.load(x_ptr + x_at + rk[None, :], mask=live[:, None] & in_k[None, :], other=0.0)
        at = cols[None, :] * w_col + rk[:, None] * w_k
        w = tl.load(w_ptr + at, mask=in_k[:, None] & in_cols[None, :], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    return acc
