"""A number for each task id of a batch, looked up where the ids are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["looked_up", "require_in_range"]


def looked_up(ids: Tensor, entries: Sequence[int]) -> Tensor:
    """Return the entry of each id.

    Nothing is copied to the ids' device where the entries count the ids, as those of plain adapters do, nor in a traced
    graph: a table made from the host in every run of it keeps it from being captured by CUDA graphs.

    Args:
        ids: int64 ``[B]``; -1 has the entry -1.
        entries: One for each id from 0 on.
    """
    if all(entry == number for number, entry in enumerate(entries)):
        return ids
    if not torch.compiler.is_compiling():
        return torch.tensor([-1, *entries], dtype=torch.int64, device=ids.device)[ids + 1]
    found = ids
    for first, end, offset, entry in _runs(entries):
        inside = (ids >= first) & (ids < end)
        found = found.masked_fill(inside, entry) if offset is None else torch.where(inside, ids + offset, found)
    return found


def _runs(entries: Sequence[int]) -> Iterator[tuple[int, int, int | None, int]]:
    """The entries in runs ``(first, end, offset, entry)``: all ``id + offset``, or all ``entry`` where that is None."""
    first = 0
    while first < len(entries):
        counting, same = first, first
        while counting < len(entries) and entries[counting] - counting == entries[first] - first:
            counting += 1
        while same < len(entries) and entries[same] == entries[first]:
            same += 1
        # Ids that are their own entries stay as they are.
        if same > counting or (counting == first + 1 and entries[first] != first):
            yield first, same, None, entries[first]
        elif entries[first] != first:
            yield first, counting, entries[first] - first, 0
        first = max(same, counting)


def require_in_range(ids: Tensor, count: int) -> None:
    """Assert on the device that each id is -1 or below ``count``: nobody has looked at the ids of a traced graph."""
    wrong = f"(task_ids < -1) | (task_ids >= {count})"
    hint = f"task_ids: an id is neither -1 nor 0..{count - 1}; ({wrong}).nonzero() gives its row"
    torch._assert_async(((ids >= -1) & (ids < count)).all(), hint)
