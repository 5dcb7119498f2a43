"""The proof that a batch of some shape gives every row the bits that it has alone.

Our packed products sum a row in an order that knows nothing of other rows. Whether all that a stock model runs beside
them does so too hangs on the processor, on how many threads there are and on torch: it is shown, once for each shape
of batch, by the first rows that come in it. A shape that fails is not used; its rows go in smaller batches, alone in
the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from .batches import Shape, largest_size

__all__ = ["Outputs", "RowProof"]

logger = logging.getLogger(__name__)

Outputs = list[tuple[np.ndarray, np.ndarray]]
"""Logits and labels of each row."""


class RowProof:
    """Which shapes of batch are good, as far as they have been met.

    Args:
        run: Runs rows in one forward pass.
        kind_of: What decides which code a row runs: its method, its head.
        on: Whether anything is to be shown; else every shape is taken to be good.
    """

    def __init__(
        self,
        run: Callable[[Sequence[dict[str, Any]]], Outputs],
        kind_of: Callable[[dict[str, Any]], Hashable],
        on: bool = True,
    ) -> None:
        self._run = run
        self._kind_of = kind_of
        self._on = on
        self._lock = threading.Lock()
        self._good: dict[tuple[Shape, int, int, frozenset[Hashable]], bool] = {}

    def most(self, shape: Shape) -> int:
        """Return how many rows of a shape a batch may have, as far as is known."""
        threads = torch.get_num_threads()
        with self._lock:
            bad = [key[1] for key, good in self._good.items() if not good and key[0] == shape and key[2] == threads]
        return largest_size(min(bad) - 1) if bad else 1 << 30

    def holds(self, shape: Shape, rows: Sequence[dict[str, Any]]) -> bool:
        """Say whether these rows may share a forward.

        Every place of the batch is filled with one of some of the rows, one of each kind among them, and each must have
        the bits there that it has alone.

        Args:
            shape: That of each row.
            rows: Those of the batch.
        """
        if not self._on or len(rows) == 1:
            return True
        kinds = {self._kind_of(row): row for row in reversed(rows)}
        key = (shape, len(rows), torch.get_num_threads(), frozenset(kinds))
        with self._lock:
            known = self._good.get(key)
        if known is None:
            known = self._shown([*kinds.values(), rows[-1]], len(rows))
            if not known:
                logger.info(
                    "%d rows of %d tokens: bits differ from those alone; smaller batches", len(rows), shape.tokens
                )
            with self._lock:
                self._good[key] = known
        return known

    def _shown(self, samples: list[dict[str, Any]], size: int) -> bool:
        alone = [self._run([row])[0][0] for row in samples]
        turns = [place % len(samples) for place in range(size)]
        together = self._run([samples[turn] for turn in turns])
        return all(
            np.array_equal(logits.view(np.int32), alone[turn].view(np.int32))
            for turn, (logits, _) in zip(turns, together, strict=True)
        )

    def shown(self) -> list[dict[str, Any]]:
        """Return what was shown: padded tokens, rows, threads, and whether a batch of that shape is used."""
        with self._lock:
            found = list(self._good.items())
        return [
            {"tokens": list(shape.widths), "full": list(shape.full), "rows": rows, "threads": threads, "used": good}
            for (shape, rows, threads, _), good in found
        ]
