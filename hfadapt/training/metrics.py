"""Metrics of a whole corpus, never averages over batches (a mean of per-batch correlations is not a correlation).

A metric is a function from ``Scored`` to a number. ``register_metric`` adds one; a task then names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TaskError, problem

__all__ = ["BUILTIN_METRICS", "METRICS", "Metric", "Scored", "entities", "register_metric"]


@dataclass(frozen=True)
class Scored:
    """What a metric reads.

    Args:
        predictions: What the head decoded, one item a row: class indices [N], 0/1 matrix [N, C], numbers [N], spans
            [N, 2], or a list of N arrays for token labels.
        references: The truth in the same form.
        num_labels: Classes of the head, where it has any.
        label_names: Names of the classes, where the task gives them.
    """

    predictions: Any
    references: Any
    num_labels: int | None = None
    label_names: Sequence[str] | None = None


Metric = Callable[[Scored], float]
METRICS: dict[str, Metric] = {}


def register_metric(name: str, metric: Metric) -> None:
    """Make ``metric`` known under ``name``.

    Raises:
        TaskError: the name is taken.
    """
    if name in METRICS:
        raise TaskError(problem(f"metric {name!r} is registered twice", try_="choose another name"))
    METRICS[name] = metric


def accuracy(scored: Scored) -> float:
    """Share of rows that are right; for multi-label rows all labels must be."""
    hits = np.asarray(scored.predictions) == np.asarray(scored.references)
    return float(hits.reshape(len(hits), -1).all(axis=1).mean()) if len(hits) else float("nan")


def f1(scored: Scored) -> float:
    """F1: of class 1 for two classes, macro over classes for more, micro over labels for multi-label rows.

    A class that is neither predicted nor present counts 0, as in scikit-learn with ``zero_division=0``.
    """
    predictions, references = np.asarray(scored.predictions), np.asarray(scored.references)
    if predictions.ndim == 2:
        return _f1(predictions == 1, references == 1)
    if (scored.num_labels or 2) == 2:
        return _f1(predictions == 1, references == 1)
    present = np.union1d(predictions, references)
    return float(np.mean([_f1(predictions == c, references == c) for c in present])) if len(present) else float("nan")


def _f1(predicted: np.ndarray, true: np.ndarray) -> float:
    both, total = int((predicted & true).sum()), int(predicted.sum()) + int(true.sum())
    return 2 * both / total if total else 0.0


def matthews(scored: Scored) -> float:
    """Matthews correlation, multi-class form (Gorodkin 2004); 0 when one side is constant."""
    predictions, references = np.asarray(scored.predictions), np.asarray(scored.references)
    classes = np.union1d(predictions, references)
    one_hot_p = (predictions[:, None] == classes).astype(np.float64)
    one_hot_r = (references[:, None] == classes).astype(np.float64)
    centred_p, centred_r = one_hot_p - one_hot_p.mean(axis=0), one_hot_r - one_hot_r.mean(axis=0)
    scale = np.sqrt((centred_p**2).sum() * (centred_r**2).sum())
    return float((centred_p * centred_r).sum() / scale) if scale > 0 else 0.0


def pearson(scored: Scored) -> float:
    """Pearson correlation; 0 when one side is constant."""
    x = np.asarray(scored.predictions, np.float64)
    y = np.asarray(scored.references, np.float64)
    if len(x) < 2:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def spearman(scored: Scored) -> float:
    """Spearman rank correlation with tied ranks averaged."""
    return pearson(
        Scored(_ranks(np.asarray(scored.predictions, np.float64)), _ranks(np.asarray(scored.references, np.float64)))
    )


def mse(scored: Scored) -> float:
    """Mean squared error, in the label's unit."""
    difference = np.asarray(scored.predictions, np.float64) - np.asarray(scored.references, np.float64)
    return float((difference**2).mean()) if len(difference) else float("nan")


def token_accuracy(scored: Scored) -> float:
    """Share of labelled tokens that are right."""
    hits = [p == r for p, r in zip(scored.predictions, scored.references, strict=True)]
    flat = np.concatenate(hits) if hits else np.array([])
    return float(flat.mean()) if len(flat) else float("nan")


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of a BIO, IOB or BIOES tag sequence as (type, first token, last token).

    As in conlleval: an ``I-`` without a matching ``B-`` before it starts an entity.
    """
    found: set[tuple[str, int, int]] = set()
    start, kind = -1, ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, label = tag.partition("-")
        starts = prefix in ("B", "S") or (prefix in ("I", "E") and label != kind)
        if kind and (prefix == "O" or starts):
            found.add((kind, start, index - 1))
            kind = ""
        if starts:
            start, kind = index, label
        if prefix in ("E", "S") and kind:
            found.add((kind, start, index))
            kind = ""
    return found


def entity_f1(scored: Scored) -> float:
    """Micro F1 over whole entities of BIO tags, as seqeval computes it; needs the task's ``label_names``."""
    names = scored.label_names
    if names is None:
        raise TaskError(
            problem("entity_f1 needs the names of the tags", try_="Task(..., label_names=('O', 'B-PER', ...))")
        )
    both = predicted = true = 0
    for p, r in zip(scored.predictions, scored.references, strict=True):
        found, gold = (entities([str(names[i]) for i in tags]) for tags in (p, r))
        both, predicted, true = both + len(found & gold), predicted + len(found), true + len(gold)
    return 2 * both / (predicted + true) if predicted + true else 0.0


def exact_match(scored: Scored) -> float:
    """Share of spans whose both ends are right."""
    return accuracy(scored)


def span_f1(scored: Scored) -> float:
    """Mean over rows of the F1 between the tokens of the predicted and of the true span."""
    predictions, references = np.asarray(scored.predictions), np.asarray(scored.references)
    if not len(predictions):
        return float("nan")
    first = np.maximum(predictions[:, 0], references[:, 0])
    last = np.minimum(predictions[:, 1], references[:, 1])
    common = np.clip(last - first + 1, 0, None)
    lengths = (predictions[:, 1] - predictions[:, 0] + 1) + (references[:, 1] - references[:, 0] + 1)
    return float((2 * common / lengths).mean())


for _metric in (accuracy, f1, matthews, pearson, spearman, mse, token_accuracy, entity_f1, exact_match, span_f1):
    register_metric(_metric.__name__, _metric)
BUILTIN_METRICS = frozenset(METRICS)
