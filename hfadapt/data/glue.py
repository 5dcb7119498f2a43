"""The eight GLUE tasks of Stickland & Murray 2019, ready made: columns, heads, metrics, label names and splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import TaskError, did_you_mean
from ..errors.names import names_of
from ..multitask.heads import Classification, Regression
from ..multitask.task import Task

__all__ = ["GLUE", "glue_task", "glue_tasks"]

_HUB_NAME = "nyu-mll/glue"
_ENTAILMENT = ("entailment", "not_entailment")


def _pair(first: str, second: str) -> dict[str, str]:
    return {"text": first, "text_pair": second, "label": "label"}


#: By name, in the order of the PALs paper's code. Data are the hub's; pass your own to ``glue_task``.
GLUE: Mapping[str, Task] = {
    task.name: replace(task, data=(_HUB_NAME, task.name))
    for task in (
        Task(
            "cola",
            Classification(2),
            metrics=("matthews",),
            columns={"text": "sentence"},
            label_names=("unacceptable", "acceptable"),
        ),
        Task(
            "mrpc",
            Classification(2),
            metrics=("accuracy", "f1"),
            columns=_pair("sentence1", "sentence2"),
            label_names=("not_equivalent", "equivalent"),
        ),
        Task(
            "mnli",
            Classification(3),
            metrics=("accuracy",),
            columns=_pair("premise", "hypothesis"),
            label_names=("entailment", "neutral", "contradiction"),
            splits={"validation": "validation_matched", "test": "test_matched"},
        ),
        Task(
            "rte",
            Classification(2),
            metrics=("accuracy",),
            columns=_pair("sentence1", "sentence2"),
            label_names=_ENTAILMENT,
        ),
        Task(
            "stsb",
            Regression(0.0, 5.0),
            metrics=("pearson", "spearman"),
            columns=_pair("sentence1", "sentence2"),
        ),
        Task(
            "sst2",
            Classification(2),
            metrics=("accuracy",),
            columns={"text": "sentence"},
            label_names=("negative", "positive"),
        ),
        Task(
            "qqp",
            Classification(2),
            metrics=("accuracy", "f1"),
            columns=_pair("question1", "question2"),
            label_names=("not_duplicate", "duplicate"),
        ),
        Task(
            "qnli",
            Classification(2),
            metrics=("accuracy",),
            columns=_pair("question", "sentence"),
            label_names=_ENTAILMENT,
        ),
    )
}


def glue_task(name: str, data: Any = None, **changes: Any) -> Task:
    """Return one GLUE task.

    Args:
        name: One of ``GLUE``.
        data: Where its rows are, as for ``Task``; by default the hub's ``nyu-mll/glue``.
        changes: Fields of ``Task`` to change, such as ``max_length`` or ``pair``.

    Raises:
        TaskError: no such task.
    """
    if name not in GLUE:
        raise TaskError(
            f"no GLUE task {name!r}",
            where="glue_task",
            got=repr(name),
            allowed=", ".join(GLUE),
            try_=did_you_mean(name, GLUE) or "glue_task('sst2')",
        )
    if data is not None:
        changes["data"] = data
    return replace(GLUE[name], **changes)


def glue_tasks(names: str | Iterable[str] | None = None, data: Mapping[str, Any] | None = None) -> list[Task]:
    """Return several GLUE tasks, all eight by default.

    Args:
        names: Which ones.
        data: Where the rows of each are; tasks that it does not name come from the hub.
    """
    data = data or {}
    return [glue_task(name, data.get(name)) for name in (GLUE if names is None else names_of(names))]
