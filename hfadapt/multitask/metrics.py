"""Metrics of a whole corpus, never averages over batches (a mean of per-batch correlations is not a correlation).

A metric is a function from ``Scored`` to a number, with a direction (is more of it better?) and a range. Both decide
which value a table marks, which checkpoint is the best, and what an average may hold. ``register_metric`` adds one; a
task then names it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from .. import plugins
from ..errors import TaskError, did_you_mean
from ..errors.limits import finite

__all__ = [
    "BUILTIN_METRICS",
    "METRICS",
    "Metric",
    "RegisteredMetric",
    "Scored",
    "entities",
    "find_metric",
    "metric_names",
    "no_metric",
    "register_metric",
]

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class RegisteredMetric:
    """A metric under its name, with its direction and range; called like the metric itself.

    Args:
        name: Under which tasks name it.
        compute: The metric.
        greater_is_better: Its direction.
        low: Its smallest value, or ``None`` for a metric without one.
        high: Its largest.
    """

    name: str
    compute: Metric
    greater_is_better: bool = True
    low: float | None = None
    high: float | None = None

    def __call__(self, scored: Scored) -> float:
        """Return the metric.

        Raises:
            TaskError: it is no number.
        """
        value: Any = self.compute(scored)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise TaskError(
                "a metric is no number",
                where=f"metric {self.name!r}",
                got=repr(value),
                allowed="what float() takes",
                try_=f"a function of Scored that ends with return float(...), in place of {self.name!r}",
            ) from error

    @property
    def scale(self) -> tuple[object, ...]:
        """What metrics have in common that may be averaged: direction and best value, or else the metric itself."""
        if self.low is None or self.high is None:
            return (self.name,)
        return (self.greater_is_better, self.high if self.greater_is_better else self.low)

    def differs_from(self, other: RegisteredMetric) -> str:
        """Why it cannot be averaged with another metric."""
        if self.greater_is_better != other.greater_is_better:
            better = ("lower", "higher")[self.greater_is_better]
            return f"{better} {self.name} is better, which is not so of {other.name}"
        if self.low is None or self.high is None:
            return f"{self.name} has no known range"
        return f"{self.name} lies in [{self.low:g}, {self.high:g}], on another scale than {other.name}"


#: Every metric by name. ``register_metric`` says its direction; a bare function put in here has none.
METRICS: dict[str, Metric] = {}


def register_metric(
    name: str,
    metric: Metric,
    *,
    greater_is_better: bool | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Make ``metric`` known under ``name``.

    Args:
        name: Under which tasks name it.
        metric: A function or object; where an argument below is left out, its attribute of that name counts.
        greater_is_better: Its direction. A metric that says nothing is taken as one where more is better, and a
            warning says so.
        low: Its smallest value. Metrics without a range are averaged with none but themselves.
        high: Its largest value.

    Raises:
        TaskError: the name is taken or empty, the metric cannot be called, or direction or range are none.
    """
    if name in METRICS:
        raise TaskError(
            f"metric {name!r} is registered twice",
            where="register_metric",
            got=repr(name),
            allowed=f"a name beside {', '.join(METRICS)}",
            try_="choose another name",
        )
    METRICS[name] = _declared(name, metric, greater_is_better, low, high)


def metric_names() -> tuple[str, ...]:
    """The names of all metrics: hfadapt's own, those of ``register_metric``, and those of plugins."""
    return tuple(dict.fromkeys((*METRICS, *plugins.metrics())))


def no_metric(name: str, thing: object) -> str:
    """Say what a plugin ought to register in the place of ``thing``; "" for a metric under a name of its own."""
    if name in BUILTIN_METRICS:
        return f"a name of its own: {name!r} is one of hfadapt's"
    return "" if callable(thing) and not isinstance(thing, type) else "a function of hfadapt.training.Scored"


def find_metric(name: str) -> RegisteredMetric:
    """Return a metric with its direction and range.

    Raises:
        TaskError: no metric has that name.
    """
    found = METRICS.get(name)
    if found is None and name in plugins.metrics():
        return _from_plugin(name, plugins.metrics()[name])
    if found is None:
        names = metric_names()
        raise TaskError(
            f"no metric {name!r}",
            where="metric",
            got=repr(name),
            allowed=", ".join(names),
            try_=did_you_mean(name, names) or _ADVICE,
        )
    if not isinstance(found, RegisteredMetric):
        # put into the dict by hand; kept as declared, so that what is assumed of it is said once
        found = METRICS[name] = _declared(name, found, None, None, None)
    return found


#: Metrics of plugins as they were declared, so that what is assumed of one that says nothing is said once.
_OF_PLUGINS: dict[str, tuple[Metric, RegisteredMetric]] = {}


def _from_plugin(name: str, metric: Metric) -> RegisteredMetric:
    known = _OF_PLUGINS.get(name)
    if known is None or known[0] is not metric:
        known = _OF_PLUGINS[name] = (metric, _declared(name, metric, None, None, None))
    return known[1]


_ADVICE = "hfadapt.training.register_metric(name, metric, greater_is_better=..., low=..., high=...)"


def _declared(
    name: str, metric: Any, greater_is_better: bool | None, low: float | None, high: float | None
) -> RegisteredMetric:
    where = f"metric {name!r}"
    if not isinstance(name, str) or not name or not callable(metric):
        got = f"{name!r}, {metric!r}"
        raise TaskError(
            "no metric", where="register_metric", got=got, allowed="a name and a function of Scored", try_=_ADVICE
        )
    given = {"greater_is_better": greater_is_better, "low": low, "high": high}
    better, low, high = (getattr(metric, key, None) if value is None else value for key, value in given.items())
    if better not in (None, True, False):
        raise TaskError(
            "bad greater_is_better",
            where=where,
            got=repr(better),
            allowed="True or False",
            try_="greater_is_better=True, or False for an error or a loss",
        )
    for bound in (low, high):
        if bound is not None and not finite(bound):
            raise TaskError(
                "bad range",
                where=where,
                got=f"{low!r} to {high!r}",
                allowed="finite numbers",
                try_="low=0.0, high=1.0; or neither, for a metric without a range",
            )
    if low is not None and high is not None and not low < high:
        raise TaskError(
            "bad range",
            where=where,
            got=f"{low!r} to {high!r}",
            allowed="low < high",
            try_=f"low={high!r}, high={low!r}" if low != high else "neither, for a metric without a range",
        )
    if better is None:
        logger.warning(
            "metric %r does not say whether more of it is better: it is taken as one where higher is better%s; try: %s",
            name,
            "" if low is not None and high is not None else ", and averaged with no other metric, having no range",
            _ADVICE,
        )
    # that a metric returns a number, its calls check
    return RegisteredMetric(name, cast(Metric, metric), better is not False, low, high)


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
            "entity_f1 needs the names of the tags",
            where="metric 'entity_f1'",
            got="label_names=None",
            allowed="the BIO tags in the order of their numbers",
            try_="Task(..., label_names=('O', 'B-PER', ...))",
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


for _low, _group in (
    (0, (accuracy, f1, token_accuracy, entity_f1, exact_match, span_f1)),
    (-1, (matthews, pearson, spearman)),
):
    for _metric in _group:
        register_metric(_metric.__name__, _metric, greater_is_better=True, low=_low, high=1)
register_metric("mse", mse, greater_is_better=False, low=0)
BUILTIN_METRICS = frozenset(METRICS)
