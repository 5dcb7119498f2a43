"""The mixing strategies that ship with hfadapt; a third party adds its own through the same hook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from hfadapt.data import MixingStrategy, UniformStream, power_probabilities
from hfadapt.errors.limits import require_number
from hfadapt.plugins import Registry, hookimpl

__all__ = ["Annealed", "Proportional", "RoundRobin", "SquareRoot", "Temperature"]


class RoundRobin(MixingStrategy):
    """Each task in turn, whatever its size."""

    name: ClassVar[str] = "round_robin"
    counts_rows: ClassVar[bool] = False

    def probabilities(self, sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
        """The same for every task."""
        return np.full(len(sizes), 1 / len(sizes))

    def draw(
        self, sizes: Sequence[int], epoch: int, epochs: int, count: int, start: int, stream: UniformStream
    ) -> np.ndarray:
        """0, 1, 2, ..., continued over epochs."""
        return (np.arange(start, start + count) % len(sizes)).astype(np.int64)


class Proportional(MixingStrategy):
    """``p_i`` proportional to N_i."""

    name: ClassVar[str] = "proportional"

    def probabilities(self, sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
        """N_i / sum N."""
        return power_probabilities(sizes, 1.0)


class SquareRoot(MixingStrategy):
    """``p_i`` proportional to the square root of N_i."""

    name: ClassVar[str] = "sqrt"

    def probabilities(self, sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
        """N_i^0.5 / sum N^0.5."""
        return power_probabilities(sizes, 0.5)


class Annealed(MixingStrategy):
    """``p_i`` proportional to N_i^alpha with alpha falling from 1 to ``end`` (Stickland & Murray 2019, section 3.3).

    ``alpha = 1 - (1 - end) (e - 1) / (E - 1)`` for e = 1..E; with one epoch alpha is 1.

    Args:
        end: alpha of the last epoch, in [0, 1].
    """

    name: ClassVar[str] = "annealed"

    def __init__(self, end: float = 0.2) -> None:
        self.end = require_number("end", end, where="Annealed", least=0, most=1)

    def alpha(self, epoch: int, epochs: int) -> float:
        """Return alpha of epoch ``e`` of ``E``; epochs past the last keep the last value."""
        if epochs <= 1:
            return 1.0
        return 1.0 - (1.0 - self.end) * (min(epoch, epochs) - 1) / (epochs - 1)

    def probabilities(self, sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
        """N_i^alpha / sum N^alpha."""
        return power_probabilities(sizes, self.alpha(epoch, epochs))


class Temperature(MixingStrategy):
    """``p_i`` proportional to ``N_i^(1/t)``: 1 is proportional, larger is flatter (Aharoni et al. 2019).

    Args:
        t: Temperature, greater than 0.
        limit: Sizes above this count as this (the artificial limit of T5); ``None`` for none.
    """

    name: ClassVar[str] = "temperature"

    def __init__(self, t: float = 2.0, limit: int | None = None) -> None:
        self.t = require_number("t", t, where="Temperature", above=0)
        self.limit = require_number("limit", limit, where="Temperature", whole=True, optional=True, least=1)

    def probabilities(self, sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
        """min(N_i, limit)^(1/t), normalised."""
        capped = sizes if self.limit is None else [min(size, self.limit) for size in sizes]
        return power_probabilities(capped, 1.0 / self.t)


@hookimpl
def register_mixing_strategies(registry: Registry) -> None:
    """Register the five."""
    for strategy in (RoundRobin, Proportional, SquareRoot, Annealed, Temperature):
        registry.add(strategy.name, strategy)
