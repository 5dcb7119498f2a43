"""Counter-based dropout: the mask is a hash of (seed, row, column), so nothing is stored and all backends agree.

The same 32-bit arithmetic stands in ``csrc/base/math.h`` (``dropout_hash``) and ``triton/common.py``
(``dropout_factor``).
Rows and columns are logical positions chosen by each op; they never depend on a row's neighbours, so the mask of a
row is the same alone and in a mixed batch at the same position.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import ShapeError

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["check_probability", "choose_dropout", "draw_seed", "dropout_threshold", "keep_scale"]

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def _mix(x: Tensor) -> Tensor:
    # "lowbias32" by C. Wellons: a bijection of 32 bits with low avalanche bias. int64 keeps the low 32 bits exact.
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def dropout_hash(seed: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """32 random bits for every (row, column), as int64 in ``[0, 2**32)``; ``rows`` and ``cols`` broadcast."""
    low, high = seed & _MASK, (seed >> 32) & _MASK
    row_hash = _mix((rows & _MASK) ^ low)
    return _mix(((row_hash ^ high) + cols * _GOLDEN) & _MASK)


def dropout_threshold(p: float) -> int:
    """Hash values below this are dropped: ``p * 2**32``, rounded."""
    return min(int(p * 4294967296.0 + 0.5), _MASK)


def keep_scale(seed: Tensor | None, rows: Tensor, cols: Tensor, p: float, dtype: torch.dtype) -> Tensor | None:
    """0 where dropped and ``1 / (1 - p)`` where kept; ``None`` when nothing is dropped.

    Args:
        seed: int64 with one element, or ``None`` for no dropout.
        rows: int64 row positions, broadcast against ``cols``.
        cols: int64 column positions.
        p: Probability of dropping.
        dtype: Of the result.
    """
    if seed is None or p == 0.0:
        return None
    keep = dropout_hash(seed.reshape(()), rows, cols) >= dropout_threshold(p)
    return keep.to(dtype) * (1.0 / (1.0 - p))


def draw_seed(device: torch.device | str) -> Int[Tensor, " 1"]:
    """A fresh int64 seed [1] from torch's default generator of ``device``: ``torch.manual_seed`` replays it."""
    return torch.randint(0, 2**62, (1,), dtype=torch.int64, device=device)


def check_probability(op: str, p: float) -> None:
    """Refuse a dropout probability outside of [0, 1)."""
    if not isinstance(p, numbers.Real) or isinstance(p, bool) or not 0.0 <= p < 1.0:
        raise ShapeError(op, "dropout is not a probability", expected="0 <= dropout < 1", got=repr(p), hint="Try 0.1.")


def choose_dropout(
    op: str, p: float, training: bool, seed: Tensor | None, device: torch.device
) -> tuple[float, Tensor | None]:
    """The probability and the seed that a call uses: 0 and ``None`` where nothing is dropped.

    Raises:
        ShapeError: ``seed`` is not one integer on ``device``.
    """
    if not training or p == 0.0:
        return 0.0, None
    if seed is None:
        return p, draw_seed(device)
    integer = isinstance(seed, Tensor) and not (
        seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool
    )
    if not integer or seed.numel() != 1 or seed.device != device:
        got = f"{seed.dtype} {list(seed.shape)} on {seed.device}" if isinstance(seed, Tensor) else repr(seed)
        hint = "Use seed=None, which draws one from torch's generator."
        if isinstance(seed, Tensor) and integer and seed.numel() == 1:
            hint = f"Use seed.to({str(device)!r})."
        elif isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
            hint = f"Use torch.tensor([{seed}], device={str(device)!r})."
        raise ShapeError(op, "seed", expected=f"int64 [1] on {device}", got=got, hint=hint)
    return p, seed.reshape(1).to(torch.int64)
