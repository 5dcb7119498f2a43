"""Keys and values of a delta's own attention, kept beside a key-value cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hfadapt import Rows, Site
from hfadapt.runtime import KVHistory, history_of
from hfadapt_kernels import TaskBatch

from .mask import padding_mask
from .rows import Pick, change_rows

__all__ = ["Memory", "OwnMemory", "memory_of"]


class Memory:
    """What one place has attended to, in one decoding call.

    Every adapter computes on its own rows, with widths of its own; histories hold the rows of all of them, as wide as
    the widest. ``keep`` is called when every adapter is through.

    Args:
        shelf: Where histories are kept.
        batch: Which adapter each row uses.
        tokens: T, the new tokens.
        keys: K, the tokens that a history has room for, or holds with the new ones.
        mask: Bool ``[B, K]`` of the tokens that are no padding, or None.
        device: Of the tokens.
    """

    def __init__(
        self, shelf: KVHistory, batch: TaskBatch, tokens: int, keys: int, mask: Tensor | None, device: torch.device
    ) -> None:
        self.shelf = shelf
        self.batch = batch
        self.tokens = tokens
        self.fresh: dict[str, dict[int, Tensor]] = {}
        queries = torch.arange(tokens, device=device) + shelf.past
        seen = torch.arange(keys, device=device) <= queries.unsqueeze(1)
        self.seen = seen.expand(batch.batch_size, -1, -1) if mask is None else seen & mask.unsqueeze(1)
        """What each new token may attend to, bool ``[B, T, K]``."""

    def own(self, index: int, pick: Pick) -> OwnMemory:
        """Return the memory of the adapter ``index``, whose rows ``pick`` picks."""
        return OwnMemory(self, index, pick)

    def extend(self, name: str, index: int, pick: Pick, new: Tensor) -> Tensor:
        """Return one adapter's history ``[b, K, S]`` with its new tokens ``[b, T, S]`` behind the earlier ones."""
        self.fresh.setdefault(name, {})[index] = new
        before = self.shelf.before(name, self.batch.batch_size)
        if self.shelf.room:
            if before is None:
                return F.pad(new, (0, 0, 0, self.shelf.room - self.tokens))
            return pick(before)[..., : new.shape[-1]].to(new.dtype).index_copy(1, self._places(new), new)
        if before is None:
            return new
        return torch.cat([pick(before)[..., : new.shape[-1]].to(new.dtype), new], 1)

    def keep(self) -> None:
        """Put the new tokens of every adapter behind the histories."""
        for name, parts in self.fresh.items():
            some = next(iter(parts.values()))
            before = self.shelf.before(name, self.batch.batch_size)
            width = max(0 if before is None else before.shape[-1], *(p.shape[-1] for p in parts.values()))
            none = some.new_zeros(self.batch.batch_size, self.tokens, width)
            new = change_rows(self.batch, none, _Padded(parts, none))
            if before is not None and before.shape[-1] < width:
                before = F.pad(before, (0, width - before.shape[-1]))
            if self.shelf.room:
                if before is None:
                    before = new.new_zeros(self.batch.batch_size, self.shelf.room, width)
                before.index_copy_(1, self._places(new), new.detach().to(before.dtype))
                new = before
            elif before is not None:
                new = torch.cat([before.to(new.dtype), new], 1)
            self.shelf.keep(name, new)

    def _places(self, new: Tensor) -> Tensor:
        return torch.arange(self.tokens, device=new.device) + self.shelf.past


class _Padded:
    """The new tokens of each adapter, as wide as those of the widest; zeros of one that has no such attention."""

    def __init__(self, parts: dict[int, Tensor], none: Tensor) -> None:
        self.parts = parts
        self.none = none

    def __call__(self, index: int, pick: Pick) -> Tensor:
        if index not in self.parts:
            return pick(self.none)
        part = self.parts[index].detach()
        return F.pad(part, (0, self.none.shape[-1] - part.shape[-1]))


class OwnMemory:
    """One adapter's part of a memory."""

    def __init__(self, memory: Memory, index: int, pick: Pick) -> None:
        self.memory = memory
        self.index = index
        self.pick = pick

    @property
    def seen(self) -> Tensor:
        """What the new tokens of its rows may attend to, bool ``[b, T, K]``."""
        return self.pick(self.memory.seen)

    def extend(self, name: str, *new: Tensor) -> list[Tensor]:
        """Put the earlier tokens in front of each of ``new`` ``[b, T, S]``; ``name`` tells attentions apart."""
        return [
            self.memory.extend(f"{name}.{number}", self.index, self.pick, tensor) for number, tensor in enumerate(new)
        ]


def memory_of(rows: Rows, site: Site, source: Tensor) -> Memory | None:
    """Return the memory of a place that reads ``source`` ``[B, T, D]``, or None in a call without a cache.

    Raises:
        RoutingError: the cache cannot serve, or the mask does not say which tokens are padding.
    """
    shelf = history_of(rows.routing, site)
    if shelf is None:
        return None
    tokens = source.shape[1]
    # only caches of fixed size count in a tensor
    keys = shelf.room if shelf.room or isinstance(shelf.past, Tensor) else shelf.past + tokens
    mask = padding_mask(rows, source.shape[0], keys, site)
    return Memory(shelf, rows.batch, tokens, keys, mask, source.device)
