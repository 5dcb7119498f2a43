"""A task: its name, head, metrics and data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..errors import HFAdaptError, TaskError, did_you_mean
from ..errors.arguments import require_mapping
from ..errors.limits import require_number
from ..errors.names import names_of
from ..method.delta import NAME_RULE, is_adapter_name, nearest_name
from ..method.fields import KnownFields
from .heads import Classification, Head, OwnHead, head_from_dict
from .metrics import BUILTIN_METRICS, metric_names

__all__ = ["Task", "check_tasks"]

PairForm = Literal["joint", "separate"]
_COLUMNS = ("text", "text_pair", "label", "pixel_values", "input_features")


@dataclass(frozen=True)
class Task(KnownFields):
    """One thing that a model learns to do.

    Args:
        name: Letters, digits, ``_`` and ``-``; also the name of the task's adapter, so no attribute of
            ``nn.ModuleDict`` (``pop``, ``keys``). Under a Trainer no name may begin with ``eval_``, ``test_`` or
            ``train_``, or be one of these words: Trainer tells its metrics apart by such beginnings.
        head: What turns hidden states into the answer.
        data: Splits as ``datasets.DatasetDict`` or a mapping from split to ``datasets.Dataset``, ``pandas.DataFrame``,
            list of dicts or file (CSV, TSV, JSON lines, parquet, also gzipped); or one of these alone, which is then
            the training split; or an ``IterableDataset`` of datasets or torch, which is read as it comes (see
            ``TaskMixture``); or a folder with files ``train.*``, ``validation.*``, ``test.*``; or a name for
            ``datasets.load_dataset``, as ``"name"``, ``"name:config"`` or ``(name, config)``.
        metrics: Names of ``hfadapt.training.METRICS``; the first one counts for the macro average. Empty: the head's
            own.
        columns: Names of the columns that hold ``text``, ``text_pair`` and ``label``, where they differ. Images and
            audio are in ``pixel_values`` or ``input_features``, as the model's own processor returns them; such a task
            has no text.
        pair: ``joint`` feeds both texts as one sequence, ``separate`` encodes each alone and the head reads
            ``[u, v, |u - v|, u * v]``, which suits bi-encoders.
        loss_weight: Factor of this task's loss, greater than 0.
        label_names: Names of the classes, in order.
        max_length: Longest sequence in tokens; ``None`` takes the tokenizer's limit, at most 512.
        splits: Names that the splits ``train``, ``validation`` and ``test`` have in ``data``, where they differ.

    Raises:
        TaskError: a field is not allowed.
    """

    field_error: ClassVar[type[HFAdaptError]] = TaskError

    name: str
    head: Head = field(default_factory=Classification)
    data: Any = field(default=None, repr=False, compare=False)
    metrics: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    pair: PairForm = "joint"
    loss_weight: float = 1.0
    label_names: Sequence[str] | None = None
    max_length: int | None = None
    splits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"task {self.name!r}"
        if not is_adapter_name(self.name):
            raise TaskError(
                "bad task name",
                where="task",
                got=repr(self.name),
                allowed=NAME_RULE,
                try_=repr(nearest_name(self.name)),
            )
        if not isinstance(self.head, Head):
            raise TaskError(
                "the head is not a head",
                where=where,
                got=repr(self.head),
                allowed="Classification(n), MultiLabel(n), Regression(), TokenClassification(n), Span(), OwnHead()",
                try_="Classification(num_labels=2)",
            )
        for attribute in ("metrics", "label_names"):
            value = getattr(self, attribute)
            if value is not None:
                object.__setattr__(self, attribute, names_of(value))
        if not self.metrics:
            object.__setattr__(self, "metrics", self.head.default_metrics)
        self._check(where)

    def _check(self, where: str) -> None:
        # a metric registered by the user is taken at its word; the built-in ones must fit the head
        allowed = (*self.head.allowed_metrics, *(name for name in metric_names() if name not in BUILTIN_METRICS))
        for metric in self.metrics:
            if metric not in allowed:
                raise TaskError(
                    f"metric {metric!r} does not fit the head {type(self.head).__name__}",
                    where=where,
                    got=metric,
                    allowed=", ".join(allowed),
                    try_=did_you_mean(metric, allowed) or "leave metrics out for the head's own",
                )
        for attribute, allowed in (("columns", "{'text': 'sentence'}"), ("splits", "{'test': 'validation'}")):
            given = getattr(self, attribute)
            given = require_mapping(attribute, given, where=where, allowed=allowed, of=str, error=TaskError)
            object.__setattr__(self, attribute, given)
        unknown = sorted(set(self.columns) - set(_COLUMNS))
        if unknown:
            raise TaskError(
                "unknown role in columns",
                where=where,
                got=", ".join(unknown),
                allowed=", ".join(_COLUMNS),
                try_=did_you_mean(unknown[0], _COLUMNS) or "{'text': 'sentence'}",
            )
        if self.pair not in ("joint", "separate"):
            raise TaskError(
                "unknown pair form", where=where, got=repr(self.pair), allowed="joint, separate", try_="pair='joint'"
            )
        if self.pair == "separate" and (not self.head.per_text or isinstance(self.head, OwnHead)):
            raise TaskError(
                "a head that answers per token, or the base's own, needs both texts in one sequence",
                where=where,
                got=f"{type(self.head).__name__} with pair='separate'",
                allowed="pair='joint'",
                try_="pair='joint'",
            )
        require_number("loss_weight", self.loss_weight, where=where, above=0, error=TaskError)
        require_number("max_length", self.max_length, where=where, whole=True, optional=True, least=4, error=TaskError)
        count = getattr(self.head, "num_labels", None)
        if self.label_names is not None and count is not None and len(self.label_names) != count:
            raise TaskError(
                "label_names do not match the head",
                where=where,
                got=f"{len(self.label_names)} names",
                allowed=f"{count} names, one a class",
                try_="the other number of classes, or the names that are missing",
            )

    def column(self, role: str) -> str:
        """Return the name of the column that holds ``text``, ``label`` or another role."""
        return self.columns.get(role, role)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description without the data."""
        return {
            "name": self.name,
            "head": self.head.to_dict(),
            "metrics": list(self.metrics),
            "columns": dict(self.columns),
            "pair": self.pair,
            "loss_weight": self.loss_weight,
            "label_names": None if self.label_names is None else list(self.label_names),
            "max_length": self.max_length,
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any], data: Any = None) -> Task:
        """Rebuild a task from ``to_dict``, with new data if wanted."""
        fields = dict(description)
        fields["head"] = head_from_dict(fields["head"])
        return cls(**fields, data=data)


def check_tasks(tasks: Task | Iterable[Task]) -> tuple[Task, ...]:
    """Return the tasks, or the one that stands in their place, as a tuple.

    Raises:
        TaskError: no task, something that is not a task, a name used twice, or ``OwnHead`` beside other heads.
    """
    try:
        tasks = (tasks,) if isinstance(tasks, Task | str) else tuple(tasks)
    except TypeError:
        raise TaskError(
            "no tasks",
            where="tasks",
            got=repr(tasks),
            allowed="one or more hfadapt.Task",
            try_="[Task('name', data=...)]",
        ) from None
    if not tasks:
        raise TaskError(
            "no task",
            where="tasks",
            got="nothing",
            allowed="one or more hfadapt.Task",
            try_="Task('name', data=...)",
        )
    names: list[str] = []
    for index, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise TaskError(
                f"tasks[{index}] is not a Task",
                where="tasks",
                got=type(task).__name__,
                allowed="hfadapt.Task",
                try_="hfadapt.Task('name', hfadapt.Classification(2), data)",
            )
        if task.name in names:
            raise TaskError(
                f"task name {task.name!r} is used twice",
                where=f"tasks[{names.index(task.name)}] and tasks[{index}]",
                got=task.name,
                allowed="each name once",
                try_="give each task a name of its own",
            )
        names.append(task.name)
    own = [task.name for task in tasks if isinstance(task.head, OwnHead)]
    if own and len(own) < len(tasks):
        raise TaskError(
            "OwnHead cannot stand beside other heads",
            where="tasks",
            got=f"OwnHead in {', '.join(own)}; other heads in {', '.join(n for n in names if n not in own)}",
            allowed="OwnHead for all tasks or for none",
            try_="give every task OwnHead(), or none",
        )
    return tasks
