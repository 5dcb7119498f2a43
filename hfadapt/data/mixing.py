"""How often each task is trained: the base class of mixing strategies, and the draw of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from ..errors import ConfigError, did_you_mean

__all__ = [
    "MixingStrategy",
    "UniformStream",
    "checked_probabilities",
    "make_strategy",
    "no_strategy",
    "power_probabilities",
]


class UniformStream(Protocol):
    """The one thing that drawing needs from a random generator."""

    def random(self, size: int) -> np.ndarray:
        """Return ``size`` numbers in [0, 1)."""
        ...


class MixingStrategy(ABC):
    """Says how likely each task is in an epoch.

    A plugin registers subclasses through the hook ``register_mixing_strategies``. Strategies hold only their own
    options, so that they can be compared, copied and written to a recipe.
    """

    name: ClassVar[str] = ""
    #: Whether what is drawn depends on how many rows the tasks have, which of a stream nobody knows.
    counts_rows: ClassVar[bool] = True

    @abstractmethod
    def probabilities(self, sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
        """Return one probability a task, float64, summing to 1.

        Args:
            sizes: Training rows of each task.
            epoch: Counted from 1.
            epochs: E, at least 1.
        """

    def draw(
        self, sizes: Sequence[int], epoch: int, epochs: int, count: int, start: int, stream: UniformStream
    ) -> np.ndarray:
        """Return the task of each of ``count`` consecutive draws, int64.

        Args:
            sizes: Training rows of each task.
            epoch: Counted from 1.
            epochs: E.
            count: How many draws.
            start: How many draws earlier epochs made; strategies that go in turn continue from there.
            stream: Seeded; the same on all ranks.
        """
        cumulative = np.cumsum(checked_probabilities(self, sizes, epoch, epochs))
        # the last entry is forced to 1 so that rounding can never push a draw past the last task
        cumulative /= cumulative[-1]
        return np.searchsorted(cumulative, stream.random(count), side="right").astype(np.int64)

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({options})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), tuple(sorted(vars(self).items()))))


def checked_probabilities(strategy: MixingStrategy, sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
    """Return what a strategy answers, float64.

    Raises:
        ConfigError: it answers something else than one finite probability a task, or only zeros.
    """
    given = strategy.probabilities(sizes, epoch, epochs)
    try:
        found = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        found = np.full(0, np.nan)
    if found.shape != (len(sizes),) or not np.isfinite(found).all() or (found < 0).any() or not found.sum() > 0:
        raise ConfigError(
            "a mixing strategy gives no probabilities",
            where=f"{strategy!r}, epoch {epoch} of {epochs}",
            got=repr(given),
            allowed=f"{len(sizes)} finite numbers of at least 0, one a task, not all 0",
            try_=f"return [1.0] * {len(sizes)}, for equal shares",
        )
    return found


def power_probabilities(sizes: Sequence[int], alpha: float) -> np.ndarray:
    """Return ``p_i = N_i^alpha / sum_j N_j^alpha`` (Stickland & Murray 2019, section 3.3)."""
    # relative to the largest, or a large alpha overflows
    largest = np.asarray(sizes, np.float64) / max(sizes)
    weights = largest**alpha
    return weights / weights.sum()


def make_strategy(strategy: MixingStrategy | str | None) -> MixingStrategy:
    """Return a strategy object from an object, a registered name, or ``None`` (annealed).

    Raises:
        RegistryError: no strategy has that name.
        ConfigError: neither a strategy nor a name.
    """
    from ..plugins import mixing_strategies

    if strategy is None:
        strategy = "annealed"
    if isinstance(strategy, str):
        return mixing_strategies()[strategy]()
    if not isinstance(strategy, MixingStrategy):
        names = list(mixing_strategies())
        hint = did_you_mean(getattr(strategy, "__name__", "").lower(), names)
        raise ConfigError(
            "not a mixing strategy",
            where="strategy",
            got=repr(strategy),
            allowed=f"a MixingStrategy object or one of {', '.join(names)}",
            try_=hint or "hfadapt.Annealed()",
        )
    return strategy


def no_strategy(name: str, thing: object) -> str:
    """Say what ought to be registered in the place of ``thing``; "" for a class of strategies."""
    fits = isinstance(thing, type) and issubclass(thing, MixingStrategy)
    return "" if fits else "a subclass of hfadapt.data.MixingStrategy"
