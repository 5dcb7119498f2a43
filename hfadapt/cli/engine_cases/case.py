"""A case: one call of ours beside calls of rivals, which take turns, and how often as fast each should be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..timing import times_in_turn
from .progress import say

__all__ = ["Case", "Rival", "Sizes", "figures_of"]

Call = Callable[[], Any]
"""Runs once; returns the seconds that it took where another process knows them better, else what is not counted."""


@dataclass(frozen=True)
class Sizes:
    """Of the model and of what it reads.

    Args:
        layers: Of a BERT.
        hidden: Its width; heads of 64, feed-forward four times.
        rows: Of a batch.
        tokens: Of a row.
        repeats: Turns that count.
        many: Tasks of the case with many.
        texts: Of the case with real text.
    """

    layers: int = 12
    hidden: int = 768
    rows: int = 32
    tokens: int = 64
    repeats: int = 5
    many: int = 1000
    texts: int = 256


@dataclass(frozen=True)
class Rival:
    """Whom a case is held against.

    Args:
        name: As the table shows it.
        call: Runs it; a text says why it is not measured.
        goal: How many times as fast as it the case should be; None for a figure without a goal.
        most: In place of it, how many times its seconds the case may take.
    """

    name: str
    call: Call | str
    goal: float | None = None
    most: float | None = None


@dataclass
class Case:
    """What is timed.

    Args:
        name: As the table shows it.
        ours: Runs it.
        rivals: In turn with it.
        shape: What it reads, in words.
        dtype: What its base multiplies with.
        unit: How many of ``per`` a call answers, for a column of its own; none without.
        per: Of what.
        notes: Further figures of the case.
    """

    name: str
    ours: Call
    rivals: list[Rival]
    shape: str
    dtype: str = "float32"
    unit: int = 0
    per: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


def figures_of(case: Case, repeats: int, within: float = math.inf) -> list[dict[str, Any]]:
    """Time a case; return a row for each of its rivals.

    Args:
        case: With its rivals.
        repeats: As of `hfadapt.cli.timing.times_in_turn`.
        within: As of `hfadapt.cli.timing.times_in_turn`.
    """
    say(f"{case.name}, {case.dtype}, {case.shape}: taking turns")
    calls: dict[str, Call] = {"": case.ours}
    calls |= {rival.name: rival.call for rival in case.rivals if not isinstance(rival.call, str)}
    times = times_in_turn(calls, repeats, within, say)
    seconds, turns = {name: statistics.median(taken) for name, taken in times.items()}, len(times[""])
    ours = seconds[""]
    rows = []
    for rival in case.rivals:
        row: dict[str, Any] = {
            "case": case.name, "rival": rival.name, "dtype": case.dtype, "shape": case.shape,
            "ms": 1e3 * ours, "rival ms": None, "times as fast": None, "goal": rival.goal, "at most": rival.most,
            "met": None, "not measured": rival.call if isinstance(rival.call, str) else None, "turns": turns,
            **case.notes,
        }  # fmt: skip
        if case.unit:
            row[f"{case.per} a second"] = case.unit / ours
        if rival.name in seconds:
            theirs = seconds[rival.name]
            row |= {"rival ms": 1e3 * theirs, "times as fast": theirs / ours}
            if rival.goal is not None:
                row["met"] = theirs / ours >= rival.goal
            elif rival.most is not None:
                row["met"] = ours / theirs <= rival.most
        rows.append(row)
    return rows
