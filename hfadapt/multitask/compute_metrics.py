"""``compute_metrics`` for a plain Trainer whose batches hold rows of several tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, TaskError
from .macro import macro_of
from .metrics import Scored, find_metric

if TYPE_CHECKING:
    from .task import Task

__all__ = ["MultiTaskMetrics"]

logger = logging.getLogger(__name__)
_MACRO = "macro"
#: What Trainer puts beside our results, under the same prefix.
_OF_TRAINER = (
    "loss",
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "model_preparation_time",
    "jit_compilation_time",
)


def _keys(tasks: Sequence[Task]) -> dict[str, tuple[str, str]]:
    """Result to its task and metric."""
    found: dict[str, tuple[str, str]] = {}
    for task in tasks:
        for metric in task.metrics:
            key = f"{task.name}_{metric}"
            other = found.get(key)
            if other is not None or key in (*_OF_TRAINER, _MACRO):
                whose = f"metric {other[1]!r} of task {other[0]!r}" if other else "what Trainer reports itself"
                raise TaskError(
                    f"two results would be called {key!r}",
                    where=f"task {task.name!r}, metric {metric!r}",
                    got=f"also {whose}",
                    allowed="names of tasks and metrics that give each result one of its own",
                    try_="rename the task or the metric",
                )
            found[key] = (task.name, metric)
    return found


def _found(name: str, known: Iterable[str]) -> str | None:
    """The result that Trainer calls ``name``, with ``eval_`` and perhaps the name of a data set in front."""
    plain = name.removeprefix("eval_")
    # the longest that fits: one task's name may end with another's
    return max((key for key in known if plain == key or plain.endswith(f"_{key}")), key=len, default=None)


class MultiTaskMetrics:
    """Computes every task's metrics over the whole evaluated corpus.

    Results are named ``<task>_<metric>``; ``macro`` is the mean of the tasks' first metrics, of those that can be
    averaged (``hfadapt.training.macro_of``; what is left out is logged). Trainer puts ``eval_`` in front. Tasks without
    an evaluated labelled row are left out.

    Args:
        tasks: In the order of their ids.

    Raises:
        TaskError: two results would have one name, or that of something that Trainer reports.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        #: Names of what ``label_ids`` holds, in order, where it is more than the labels; set from Trainer's arguments.
        self.label_names: tuple[str, ...] = ("labels",)
        #: Names of results that a ``compute_metrics`` of your own adds to these, for ``metric_for_best_model``.
        self.other_names: tuple[str, ...] = ()
        self.keys = _keys(self.tasks)
        self.macro = macro_of(self.tasks)
        if self.macro.left_out:
            logger.warning("%s", self.macro.describe())

    def direction(self, name: str) -> bool | None:
        """Say whether more is better of a result as Trainer names it (``eval_rte_accuracy``); ``None``: none of ours.

        The name of a data set may stand between (``eval_dev_rte_accuracy``).
        """
        known = {**{key: find_metric(metric).greater_is_better for key, (_, metric) in self.keys.items()}}
        if self.macro.tasks:
            known[_MACRO] = self.macro.greater_is_better
        found = _found(name, known)
        return None if found is None else known[found]

    def reports(self, name: str) -> bool:
        """Say whether an evaluation by Trainer has a result of this name: ours, Trainer's own, or ``other_names``."""
        return _found(name, (*self.names, *_OF_TRAINER)) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The results by which a best model may be chosen, without Trainer's ``eval_``."""
        return (*self.keys, *((_MACRO,) if self.macro.tasks else ()), *self.other_names, "loss")

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Return the metrics of a ``transformers.EvalPrediction``.

        Args:
            prediction: ``predictions`` is ``(logits, task_ids)``, or logits alone for one task.

        Raises:
            DataError: several tasks, but the predictions carry no task ids.
        """
        found = prediction.label_ids
        named = dict(zip(self.label_names, found, strict=True)) if isinstance(found, tuple) else {"labels": found}
        logits, task_ids = self._unpack(prediction.predictions, named.get("task_ids"))
        labels = np.asarray(named["labels"])
        labels = labels.reshape(len(labels), -1)
        results: dict[str, float] = {}
        primary: dict[str, float] = {}
        for index, task in enumerate(self.tasks):
            rows = task_ids == index
            if not rows.any() or not task.metrics:
                continue
            predictions, references = task.head.decode(logits[rows], labels[rows])
            if not len(references):
                continue
            scored = Scored(predictions, references, getattr(task.head, "num_labels", None), task.label_names)
            values = {f"{task.name}_{name}": find_metric(name)(scored) for name in task.metrics}
            primary[task.name] = next(iter(values.values()))
            results.update(values)
        macro = self.macro.average(primary)
        return results if macro is None else {**results, _MACRO: macro}

    def _unpack(self, predictions: Any, beside: Any = None) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(predictions, (tuple, list)) and len(predictions) >= 2:
            task_ids = np.asarray(predictions[-1])
            if task_ids.ndim == 1:
                return np.asarray(predictions[0]), task_ids
        logits = np.asarray(next(iter(predictions)) if isinstance(predictions, (tuple, list)) else predictions)
        if beside is not None:
            return logits, np.asarray(beside)
        if len(self.tasks) > 1:
            raise DataError(
                "the predictions do not say which task a row belongs to",
                where="MultiTaskMetrics",
                got=f"{type(predictions).__name__} without task_ids",
                allowed="(logits, task_ids), as MultiTaskModel returns them",
                try_="train hfadapt.MultiTaskModel, or leave 'task_ids' out of ignore_keys",
            )
        return logits, np.zeros(len(logits), np.int64)
