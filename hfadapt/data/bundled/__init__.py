"""Data sets by name: three bundled tasks, and the five that `hfadapt data minisuite` builds on the user's machine.

The three bundled ones may be redistributed; each folder carries its licence and citation. The others are looked up in
the folder that the builder writes: ``$HFADAPT_DATA``, by default ``~/.cache/hfadapt/minisuite``.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["BUNDLED", "SPLITS", "TaskDescription", "describe", "folder", "load", "minisuite_folder", "names"]

BUNDLED = ("wn_relation", "sms_spam", "tweet_valence")
BUILT = ("rt_sentiment", "news20", "trec6", "hedge", "lee_similarity")
SPLITS = ("train", "validation", "test")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class TaskDescription:
    """What a named data set is: the row of ``tasks.json`` that belongs to it."""

    name: str
    kind: str
    """``"classification"`` or ``"regression"``."""
    pair: bool
    num_labels: int
    labels: tuple[str, ...] | None
    metric: str
    sizes: Mapping[str, int]
    source: str
    licence: str
    cite: str
    note: str
    mean_words: float


def minisuite_folder() -> Path:
    """Where built data sets live: ``$HFADAPT_DATA`` or ``~/.cache/hfadapt/minisuite``."""
    return Path(os.environ.get("HFADAPT_DATA") or Path.home() / ".cache" / "hfadapt" / "minisuite")


def names() -> tuple[str, ...]:
    """Every data set that can be loaded by name now: the bundled ones, then those built on this machine."""
    built = minisuite_folder()
    return BUNDLED + tuple(name for name in BUILT if (built / name / "test.jsonl.gz").is_file())


def folder(name: str) -> Path:
    """The folder that holds ``train.jsonl.gz``, ``validation.jsonl.gz`` and ``test.jsonl.gz`` of a data set.

    Raises:
        DataError: no data set has this name, or it was not built on this machine yet.
    """
    if name in BUNDLED:
        return _HERE / name
    if name in BUILT:
        place = minisuite_folder() / name
        if (place / "test.jsonl.gz").is_file():
            return place
        raise DataError(
            f"data set {name!r} is not on this machine",
            where=str(place),
            got="no test.jsonl.gz there",
            allowed=f"data sets here: {', '.join(names())}",
            try_=f"hfadapt data minisuite --task {name}   (its licence does not allow bundling it)",
        )
    raise DataError(
        "no data set has this name",
        where="hfadapt.data.bundled",
        got=repr(name),
        allowed=", ".join(BUNDLED + BUILT),
        try_=did_you_mean(name, BUNDLED + BUILT) or "hfadapt data, which lists what each holds",
    )


def describe(name: str) -> TaskDescription:
    """The description of a data set: kind, labels, metric, sizes, licence, citation."""
    row = _table(folder(name).parent / "tasks.json")[name]
    labels = row["labels"]
    return TaskDescription(
        name=name,
        kind=row["kind"],
        pair=row["pair"],
        num_labels=row["num_labels"],
        labels=tuple(labels) if labels else None,
        metric=row["metric"],
        sizes=row["sizes"],
        source=row["source"],
        licence=row["licence"],
        cite=row["cite"],
        note=row["note"],
        mean_words=row["mean_words"],
    )


def rows(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of one split, each with ``text``, for pairs ``text_pair``, and ``label``."""
    if split not in SPLITS:
        raise DataError(
            "no such split",
            where=f"data set {name!r}",
            got=repr(split),
            allowed=", ".join(SPLITS),
            try_=did_you_mean(split, SPLITS) or f"rows({name!r}, 'validation')",
        )
    with gzip.open(folder(name) / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load(name: str) -> DatasetDict:
    """A data set as a ``datasets.DatasetDict`` with the splits train, validation and test, held in memory."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(rows(name, split)) for split in SPLITS})


def _table(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        return json.load(file)
