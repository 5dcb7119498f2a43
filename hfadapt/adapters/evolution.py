"""A search for the numbers of a function that has no gradient: cmaes's, with a budget and the best that was seen."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigError

__all__ = ["minimize"]


def minimize(
    loss: Callable[[list[float]], float],
    start: list[float],
    *,
    steps: int,
    bound: float,
    spread: float,
    seed: int,
) -> tuple[list[float], float]:
    """Return the best of some points, and its loss.

    CMA-ES (Hansen 2016, arXiv:1604.00772) is at home with few numbers and few evaluations, and needs nothing but an
    order of the points.

    Args:
        loss: Asked at one point after another; may be infinite.
        start: The first point.
        steps: How often the loss is asked.
        bound: No coordinate is farther from 0.
        spread: Of the first points around the start.
        seed: Of what is drawn.

    Raises:
        ConfigError: the package ``cmaes`` is not installed.
    """
    try:
        from cmaes import CMA
    except ImportError as error:
        raise ConfigError(
            "the search needs a package that is not installed",
            where="hfadapt.fit_weights",
            got="no module cmaes",
            allowed="cmaes 0.13 or later",
            try_="pip install 'hfadapt[fit]'",
        ) from error
    import numpy as np

    search = CMA(np.asarray(start, np.float64), spread, seed=seed % 2**32)
    best, least = list(start), loss(list(start))
    asked = 1
    while asked < steps:
        found = []
        for _ in range(min(search.population_size, steps - asked)):
            # Onto the box: drawing until a point is inside, as cmaes does, comes slowly to where weights are largest.
            point = search.ask().clip(-bound, bound)
            found.append((point, loss(point.tolist())))
        asked += len(found)
        for point, value in found:
            if value < least:
                best, least = point.tolist(), value
        if len(found) == search.population_size:  # of a part of a generation nothing is learnt
            search.tell(found)
    return best, least
