"""What the Triton kernels share: activations, the dropout hash, tables of pointers. Imports triton: load it lazily."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["activate", "activate_derivative", "dropout_factor", "pointer_table", "precision"]

# pyright: reportGeneralTypeIssues=false


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
    return tl.where(bits.to(tl.int64) >= threshold, scale, 0.0)


def pointer_table(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Addresses of contiguous tensors as int64 on the device: kernels index per-task weights without restacking them.

    The caller keeps the tensors alive until the launch is enqueued.
    """
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64).to(device, non_blocking=True)


def precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: TF32 only where the user allowed it for torch's own products."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
