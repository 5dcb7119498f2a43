"""Numbers a task that kernels read on the device: ranks, scales, and how far apart the tasks' tensors lie.

A table is known by the numbers in it, so it cannot be out of date: weights that were replaced, moved or cast lie
elsewhere, which are other numbers, and another table. It is copied to the device once, when its numbers are first seen;
a forward with the adapters of the last one copies nothing.

Addresses are distances, in elements, from the tensor of the first task, which a kernel is given as any other. So one
tensor alone, and tensors cut from one buffer (`buffer`), have the same table wherever they lie.
"""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["aligned", "aligned_all", "bits", "buffer", "capturing", "distances", "task_table"]

# Tables are of some hundred bytes. Where addresses never come again (weights made anew in each call), old ones go.
_MOST = 4096
_TABLES: dict[tuple[Any, ...], Tensor] = {}
# A captured graph reads its tables in every replay, for as long as it lives.
_CAPTURED: dict[tuple[Any, ...], Tensor] = {}
_BYTES = 16


def capturing(device: torch.device) -> bool:
    """Whether what is launched now is recorded into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that 16 divides: the kernels are told so."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _BYTES == 0 else tensor.clone()


def aligned_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as `aligned` makes them; where one has to be copied all are, into one buffer by one launch."""
    tensors = list(tensors)
    if all(tensor.is_contiguous() and tensor.data_ptr() % _BYTES == 0 for tensor in tensors):
        return tensors
    copies = buffer(tensors[0], [tensor.shape for tensor in tensors])
    torch._foreach_copy_(copies, tensors)
    return copies


def buffer(like: Tensor, shapes: Sequence[Sequence[int]], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Uninitialised tensors of these shapes, cut from one allocation: their distances hang on the shapes alone."""
    dtype = dtype or like.dtype
    step = max(_BYTES // dtype.itemsize, 1)
    sizes = [-(-torch.Size(shape).numel() // step) * step for shape in shapes]
    whole, views, at = like.new_empty(sum(sizes), dtype=dtype), [], 0
    for shape, size in zip(shapes, sizes, strict=True):
        views.append(whole[at : at + torch.Size(shape).numel()].view(shape))
        at += size
    return views


def distances(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """How many elements each of `aligned` tensors lies behind the first."""
    if not tensors:
        return ()
    first, size = tensors[0].data_ptr(), tensors[0].element_size()
    return tuple((tensor.data_ptr() - first) // size for tensor in tensors)


def bits(numbers: Sequence[float]) -> tuple[int, ...]:
    """The bits of float32 numbers, as a table of integers holds them."""
    return tuple(array("i", array("f", numbers).tobytes()))


def task_table(device: torch.device, *columns: Sequence[int], fresh: bool = False) -> Tensor:
    """The columns as int64 ``[columns, tasks]`` on the device.

    Args:
        device: Where the kernels run.
        columns: Each of one number a task.
        fresh: The numbers are not expected again (addresses of tensors that a call makes). They are then written by a
            launch that has them as its arguments, which neither copies nor waits, and are not kept.
    """
    key = (device, *map(tuple, columns))
    found = _TABLES.get(key)
    recorded = capturing(device)
    if found is None:
        found = _CAPTURED.get(key)
    if found is None:
        if fresh or recorded:
            return _written(device, columns)
        if len(_TABLES) >= _MOST:
            _forget(device)
        # Not from pinned memory: this waits until the table is there, so that every stream may read it.
        found = _TABLES[key] = torch.tensor([list(column) for column in columns], dtype=torch.int64, device=device)
    if recorded:
        _CAPTURED[key] = found
    return found


def _forget(device: torch.device) -> None:
    # The memory would be given to whatever is allocated next, on whichever stream.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    _TABLES.clear()


def _written(device: torch.device, columns: Sequence[Sequence[int]]) -> Tensor:
    from .numbers import COUNT, numbers_kernel

    numbers = [number for column in columns for number in column]
    table = torch.empty(-(-len(numbers) // COUNT) * COUNT, dtype=torch.int64, device=device)
    for at in range(0, len(numbers), COUNT):
        part = numbers[at : at + COUNT]
        numbers_kernel[(1,)](table[at:], *part, *(0,) * (COUNT - len(part)), num_warps=1)
    return table[: len(numbers)].view(len(columns), -1)
