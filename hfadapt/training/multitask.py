"""``compute_metrics`` for a plain Trainer whose batches hold rows of several tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, problem
from .metrics import METRICS, Scored

if TYPE_CHECKING:
    from ..tasks import Task

__all__ = ["MultiTaskMetrics"]


class MultiTaskMetrics:
    """Computes every task's metrics over the whole evaluated corpus.

    Results are named ``<task>_<metric>``; ``macro`` is the mean of the tasks' first metrics. Trainer puts ``eval_`` in
    front. Tasks without an evaluated labelled row are left out.

    Args:
        tasks: In the order of their ids.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Return the metrics of a ``transformers.EvalPrediction``.

        Args:
            prediction: ``predictions`` is ``(logits, task_ids)``, or logits alone for one task.

        Raises:
            DataError: several tasks, but the predictions carry no task ids.
        """
        logits, task_ids = self._unpack(prediction.predictions)
        labels = np.asarray(prediction.label_ids)
        labels = labels.reshape(len(labels), -1)
        results: dict[str, float] = {}
        primary: list[float] = []
        for index, task in enumerate(self.tasks):
            rows = task_ids == index
            if not rows.any() or not task.metrics:
                continue
            predictions, references = task.head.decode(logits[rows], labels[rows])
            if not len(references):
                continue
            scored = Scored(predictions, references, getattr(task.head, "num_labels", None), task.label_names)
            values = {f"{task.name}_{name}": float(METRICS[name](scored)) for name in task.metrics}
            primary.extend(list(values.values())[:1])
            results.update(values)
        if primary:
            results["macro"] = float(np.mean(primary))
        return results

    def _unpack(self, predictions: Any) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(predictions, (tuple, list)) and len(predictions) >= 2:
            task_ids = np.asarray(predictions[-1])
            if task_ids.ndim == 1:
                return np.asarray(predictions[0]), task_ids
        logits = np.asarray(next(iter(predictions)) if isinstance(predictions, (tuple, list)) else predictions)
        if len(self.tasks) > 1:
            raise DataError(
                problem(
                    "the predictions do not say which task a row belongs to",
                    got=f"{type(predictions).__name__} without task_ids",
                    allowed="(logits, task_ids), as MultiTaskModel returns them",
                    try_="train hfadapt.MultiTaskModel, or leave 'task_ids' out of ignore_keys",
                )
            )
        return logits, np.zeros(len(logits), np.int64)
