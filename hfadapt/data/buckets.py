"""Rows of like length together, so that batches are padded little.

A row has one width for each text that is padded on its own: one as a rule, two where the texts of a pair are encoded
separately. A batch of B rows costs ``B * (widest first text + widest second text)``.
"""

from __future__ import annotations

import numpy as np

__all__ = ["by_length", "keep_walks", "widths_of"]


def widths_of(lengths: np.ndarray, columns: int) -> np.ndarray:
    """Return lengths [N] or [N, K] as [N, columns], zeros for the texts that these rows lack."""
    given = lengths[:, None] if lengths.ndim == 1 else lengths
    return np.pad(given, ((0, 0), (0, columns - given.shape[1])))


def by_length(widths: np.ndarray, batch: int) -> np.ndarray:
    """Return an order of rows in which batches hold rows of like widths.

    With one width that is its order. With several no single key sorts all of them: the rows are cut in two where that
    saves most, again and again, always between two batches.

    Args:
        widths: Tokens of each text of each row, int64 [N, K].
        batch: B; the last batch may be smaller.
    """
    varying = [column for column in range(widths.shape[1]) if len(widths) and np.ptp(widths[:, column]) > 0]
    if len(varying) <= 1:
        return np.argsort(widths[:, varying[0]], kind="stable") if varying else np.arange(len(widths))
    pieces: list[np.ndarray] = []
    waiting = [np.arange(len(widths))]
    while waiting:
        rows = waiting.pop()
        cut = _best_cut(rows, widths, batch)
        if cut is None:
            pieces.append(rows)
        else:
            # the first half is taken next
            waiting += [cut[1], cut[0]]
    return np.concatenate(pieces)


def _best_cut(rows: np.ndarray, widths: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the two halves that are padded least together, or None for a single batch."""
    if len(rows) <= batch:
        return None
    places = np.arange(batch, len(rows), batch)
    best, least = None, np.inf
    for column in range(widths.shape[1]):
        ordered = rows[np.argsort(widths[rows, column], kind="stable")]
        mine = widths[ordered]
        low = np.maximum.accumulate(mine)[places - 1].sum(1)
        high = np.maximum.accumulate(mine[::-1])[::-1][places].sum(1)
        padded = places * low + (len(rows) - places) * high
        place = int(np.argmin(padded))
        if padded[place] < least:
            least, best = padded[place], (ordered[: places[place]], ordered[places[place] :])
    return best


def keep_walks(order: np.ndarray, tasks: np.ndarray, passes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return an order in which a task's rows of one walk through its data come before those of its next.

    Places keep their tasks. Where a task has rows of several walks, its places are given to one walk after another, and
    within a walk each place gets a row like the one that it had.

    Args:
        order: Of rows by place, [N].
        tasks: Of each row, [N].
        passes: The number of the walk that each row belongs to, [N].
        widths: Tokens of each text of each row, [N, K].
    """
    kept = order.copy()
    for task in np.unique(tasks):
        mine = np.flatnonzero(tasks == task)
        walks = np.unique(passes[mine])
        if len(walks) == 1:
            continue
        places = np.flatnonzero(tasks[order] == task)
        start = 0
        for walk in walks:
            rows = mine[passes[mine] == walk]
            here = places[start : start + len(rows)]
            start += len(rows)
            kept[here] = rows[_like(widths[order[here]], widths[rows])]
    return kept


def _like(wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return for each of N wanted widths [N, K] the number of one of N given, each once; halves are matched alike."""
    found = np.empty(len(wanted), np.int64)
    waiting = [(np.arange(len(wanted)), np.arange(len(given)))]
    while waiting:
        places, rows = waiting.pop()
        column = int(np.argmax(np.ptp(wanted[places], axis=0)))
        places = places[np.argsort(wanted[places, column], kind="stable")]
        rows = rows[np.argsort(given[rows, column], kind="stable")]
        if wanted.shape[1] == 1 or len(places) == 1:
            found[places] = rows
        else:
            half = len(places) // 2
            waiting += [(places[:half], rows[:half]), (places[half:], rows[half:])]
    return found
