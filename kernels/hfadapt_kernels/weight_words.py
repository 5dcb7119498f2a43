"""A look at weights where they stand in memory, by which a change that torch does not count is seen."""

from __future__ import annotations

import ctypes

from torch import Tensor

__all__ = ["Words", "words_of"]

Words = tuple[ctypes.c_uint64, ...]
_WORD, _PARTS = 8, 3


def words_of(weight: Tensor) -> Words:
    """Some of the bytes of a weight where they stand in memory, from its first number to its last.

    What is written through ``weight.data``, as peft's merge does, changes neither the address nor torch's version. An
    update of the whole weight is seen by these; one of a few numbers need not be.
    """
    last = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    room, at = (last + 1) * weight.itemsize - _WORD, weight.data_ptr()
    if weight.device.type != "cpu" or not weight.numel() or room < 0 or not at:
        return ()
    return tuple(ctypes.c_uint64.from_address(at + room * part // _PARTS) for part in range(_PARTS + 1))
