"""Calls that are timed in turn, so that what else runs on the machine meets all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["medians_in_turn", "times_in_turn"]


def medians_in_turn(calls: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Return the median seconds of each call; see `times_in_turn`."""
    return {name: statistics.median(taken) for name, taken in times_in_turn(calls, repeats).items()}


def times_in_turn(
    calls: Mapping[Any, Callable[[], Any]],
    repeats: int,
    within: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
) -> dict[Any, list[float]]:
    """Return the seconds of each call by turn; all take turns, and a first turn, which is not counted, warms up.

    Args:
        calls: By name. One that returns a float was timed elsewhere: those are its seconds.
        repeats: Turns that count.
        within: Seconds after which no turn begins that would not end in them; one counts in any case.
        say: Told at which turn it is.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    begun = ended = time.perf_counter()
    for turn in range(repeats + 1):
        now = time.perf_counter()
        if turn > 1 and 2 * now - ended - begun > within:
            break
        if turn:
            say(f"  turn {turn} of {repeats}, {now - begun:.0f} s")
        ended = now
        for name, call in calls.items():
            start = time.perf_counter()
            told = call()
            taken = told if isinstance(told, float) else time.perf_counter() - start
            if turn:
                times[name].append(taken)
    return times
