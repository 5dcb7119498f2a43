"""What a claim is worth: paired differences over seeds, their 95 % interval, and a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Student's t, 97.5 %, by degrees of freedom.
_T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622}

REPRODUCED, NOT, NOT_RUN, NOT_TESTABLE = "reproduced", "not reproduced", "not run yet", "not testable here"
LEAST_SEEDS = 3

# What stands between an arm's name and the value at which it is scored besides, and the key of those scores.
MARKS = (("@", "depths"), ("~", "noise"), ("^", "pruned"))


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.half:.1f}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with Student's interval; of two values and more."""
    half = _T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.fmean(values), half)


def scores_of(arm: str, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seed to macro average of an arm.

    ``arm@3`` is with three layers dropped, ``arm~10`` with 10 % of words replaced, ``arm^2`` with a fusion pruned to
    two adapters.
    """
    name, key, value = parts_of(arm)
    seeds = results.get(name, {}).get("seeds", {})
    return {seed: found[key][value] if key else found["macro"] for seed, found in seeds.items()}


def parts_of(arm: str) -> tuple[str, str, str]:
    """The arm's own name, and where in a result its score lies: a key of `MARKS` with the value, or neither."""
    for mark, key in MARKS:
        name, found, value = arm.partition(mark)
        if found:
            return name, key, value
    return arm, "", ""


@dataclass(frozen=True)
class Judged:
    """A claim with what was found."""

    claim: str
    theirs: str
    ours: str
    verdict: str


def judge(claim: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> Judged:
    """Hold one claim to the results: pairs of the same seed, so that what a seed does to both arms cancels."""
    said = claim["claim"], claim["theirs"]
    if "why" in claim:
        return Judged(*said, "", f"{NOT_TESTABLE}: {claim['why']}")
    ours, other = (scores_of(claim[key], results) for key in ("arm", "than"))
    seeds = sorted(ours.keys() & other.keys(), key=int)
    if len(seeds) < LEAST_SEEDS:
        return Judged(*said, "", f"{NOT_RUN} ({len(seeds)} of {LEAST_SEEDS} seeds)")
    difference = interval([ours[seed] - other[seed] for seed in seeds])
    floor = -claim["points"] if claim["rule"] == "no_worse" else 0.0
    text = (
        f"{interval([ours[seed] for seed in seeds])} against {interval([other[seed] for seed in seeds])}: "
        f"{difference.mean:+.1f} ± {difference.half:.1f}"
    )
    if difference.mean - difference.half > floor:
        return Judged(*said, text, REPRODUCED)
    why = "the other way round" if difference.mean + difference.half < floor else "the interval holds no difference"
    if floor:
        why = "worse" if difference.mean + difference.half < floor else f"it may be more than {-floor:g} worse"
    return Judged(*said, text, f"{NOT}: {why}")
