"""Calls that are timed in turn, so that what else runs on the machine meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["medians_in_turn"]


def medians_in_turn(calls: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Return the median seconds of each call; all take turns, and a first turn, which is not counted, warms up.

    Args:
        calls: By name. One that returns a float was timed elsewhere: those are its seconds.
        repeats: Turns that count.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            told = call()
            taken = told if isinstance(told, float) else time.perf_counter() - start
            if turn:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}
