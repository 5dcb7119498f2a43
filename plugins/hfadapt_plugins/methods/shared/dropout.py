"""Dropout in what an adapter computes on its own rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from hfadapt_kernels import drop_rows

__all__ = ["RowDropout"]


@dataclass
class RowDropout:
    """Dropout whose masks hang on a row's place in the batch, so that a row is the same whoever its neighbours are.

    Args:
        seed: int64 [1], one for the whole call, whichever adapters have rows in it.
        rows: int64 ``[b]``, the places of the rows that are computed.
    """

    seed: Tensor
    rows: Tensor
    _calls: int = field(default=0, init=False)

    def __call__(self, x: Tensor, p: float) -> Tensor:
        """Drop elements of ``x`` ``[b, ..., S]`` with probability ``p``; each call has a mask of its own."""
        self._calls += 1
        return drop_rows(x, p, self.seed, self.rows, self._calls)

    def with_probability(self, p: float) -> Callable[[Tensor], Tensor] | None:
        """A function that drops with probability ``p``; None where it would drop nothing."""
        return (lambda x: self(x, p)) if p else None
