"""From raw rows to splits: cleaning, duplicate keys, near-duplicates, splitting by group.

Every function is deterministic: order of input and the given random stream decide the result.
"""

from __future__ import annotations

import html
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Row", "Splits", "clean", "finish", "row_key", "split_given"]

Row = dict[str, Any]
Splits = dict[str, list[Row]]

NEAR_DUPLICATE = 0.6
"""Jaccard similarity of word 3-grams from which a training row counts as a copy of a held-out one."""


def clean(text: str, cap: int = 600) -> str:
    """Decode HTML entities, collapse white space, cut at a word boundary after at most ``cap`` characters."""
    text = re.sub(r"\s+", " ", html.unescape(text)).strip()
    if len(text) > cap:
        text = text[:cap].rsplit(" ", 1)[0]
    return text


def _letters(text: str) -> str:
    """Letters only, lower case, so that variants that differ in numbers or punctuation collapse."""
    return re.sub(r"[^a-z]+", " ", text.lower()).strip() or text


def row_key(row: Row) -> str:
    """The key under which two rows are duplicates; the order of a pair does not matter."""
    if "text_pair" in row:
        return "\x00".join(sorted((_letters(row["text"]), _letters(row["text_pair"]))))
    return _letters(row["text"])


def deduplicate(rows: Iterable[Row], regression: bool = False) -> list[Row]:
    """Keep one of each group of duplicates; a text that occurs with two classes is dropped whole."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row_key(row), []).append(row)
    return [group[0] for group in groups.values() if regression or len({row["label"] for row in group}) == 1]


def _shingles(text: str, size: int = 3) -> set[tuple[str, ...]]:
    words = _letters(text).split()
    # Below size + 2 words a single shared shingle would already look like a copy.
    if len(words) < size + 2:
        return set()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def drop_near_duplicates(rows: Iterable[Row], held_out: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows that are no near-duplicate of a held-out row, and how many were dropped."""
    held = [_shingles(row["text"]) for row in held_out]
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, shingles in enumerate(held):
        for shingle in shingles:
            index[shingle].append(i)
    kept: list[Row] = []
    dropped = 0
    for row in rows:
        mine = _shingles(row["text"])
        shared = Counter(i for shingle in mine for i in index.get(shingle, ()))
        if any(n / (len(mine) + len(held[i]) - n) >= NEAR_DUPLICATE for i, n in shared.items()):
            dropped += 1
        else:
            kept.append(row)
    return kept, dropped


def split_by_group(rows: Sequence[Row], groups: Sequence[Any], rng: random.Random) -> tuple[list[Row], ...]:
    """Split whole groups into train, validation (10 %) and test (10 %)."""
    order = sorted(set(groups))
    rng.shuffle(order)
    size = Counter(groups)
    want = 0.1 * len(rows)
    got = [0, 0]
    place: dict[Any, int] = {}
    for group in order:
        for part in (0, 1):
            if got[part] < want:
                place[group] = part
                got[part] += size[group]
                break
    train = [row for row, group in zip(rows, groups, strict=True) if group not in place]
    held = [[row for row, group in zip(rows, groups, strict=True) if place.get(group) == part] for part in (0, 1)]
    return train, held[0], held[1]


def finish(
    rows: Iterable[Row], rng: random.Random, *, regression: bool = False, group: str | None = None
) -> tuple[Splits, int]:
    """Deduplicate, split at random (by the values of the key ``group`` where given), drop near-duplicates, shuffle."""
    unique = deduplicate(rows, regression)
    groups = [row[group] for row in unique] if group else list(range(len(unique)))
    train, validation, test = split_by_group(unique, groups, rng)
    return _shuffled(train, validation, test, rng)


def split_given(
    train: Iterable[Row], test: Iterable[Row], rng: random.Random, *, test_cap: int | None = None
) -> tuple[Splits, int]:
    """Keep an official train and test split; a tenth of train becomes validation."""
    train, test = deduplicate(train), deduplicate(test)
    seen = {row_key(row) for row in test}
    train = [row for row in train if row_key(row) not in seen]
    rng.shuffle(train)
    cut = max(1, len(train) // 10)
    splits, dropped = _shuffled(train[cut:], train[:cut], test, rng)
    splits["test"] = splits["test"][:test_cap]
    return splits, dropped


def _shuffled(train: list[Row], validation: list[Row], test: list[Row], rng: random.Random) -> tuple[Splits, int]:
    for part in (train, validation, test):
        rng.shuffle(part)
    validation, first = drop_near_duplicates(validation, test)
    train, second = drop_near_duplicates(train, validation + test)
    return {"train": train, "validation": validation, "test": test}, first + second
