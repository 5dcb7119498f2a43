"""What must hold between Trainer, model and mixture before a run starts."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainingArguments

from ..errors import ConfigError, DataError, TaskError, did_you_mean
from ..multitask.heads import IGNORE, OwnHead
from .arguments import require_arguments

if TYPE_CHECKING:
    from torch import nn

    from ..data.collator import MultiTaskCollator
    from ..data.columns import Columns
    from ..data.datasets import MixtureDataset
    from ..data.schedule import Layout, Schedule
    from ..multitask.compute_metrics import MultiTaskMetrics
    from ..multitask.task import Task

__all__ = [
    "Mixture",
    "base_name",
    "require_mixture",
    "require_names",
    "require_order",
    "require_same_tasks",
    "settle_best_metric",
    "takes_task_ids",
]

logger = logging.getLogger(__name__)


class Mixture(Protocol):
    """What the callbacks ask of the data of several tasks, which is `TaskMixture`."""

    tasks: tuple[Task, ...]

    @property
    def reads_text(self) -> bool: ...

    @property
    def train(self) -> MixtureDataset: ...

    @property
    def collator(self) -> MultiTaskCollator: ...

    @property
    def metrics(self) -> MultiTaskMetrics: ...

    @property
    def schedule(self) -> Schedule: ...

    def bind(self, tokenizer: Any) -> Any: ...

    def has_labels(self, task: str, split: str) -> bool: ...

    def plan(self, layout: Layout, seed: int | None = None) -> Any: ...

    def texts(self, task: str, split: str) -> Columns: ...

    def untrained(self, steps: int) -> list[str]: ...

    def with_layout(self, layout: Layout) -> Schedule: ...


def require_order(args: TrainingArguments) -> None:
    """Let the Trainer keep the mixture's order of rows, and refuse arguments that contradict it.

    Raises:
        ConfigError: an argument would change the order, the loss or the batch size, or holds a number that no training
            can mean.
    """
    require_arguments(vars(args))
    strategy = getattr(args, "train_sampling_strategy", None)
    if strategy == "random":
        # the default, which nobody chose: the mixture has shuffled its rows already
        args.train_sampling_strategy = "sequential"
        logger.info("train_sampling_strategy set to 'sequential': TaskMixture orders the rows itself")
    elif strategy != "sequential":
        missing = strategy is None
        raise ConfigError(
            "this transformers cannot train in a given order"
            if missing
            else "the sampler would undo the mixture's order",
            where="TrainingArguments.train_sampling_strategy",
            got="transformers before 5.2" if missing else repr(strategy),
            allowed="'sequential' (or the default 'random', which is replaced)",
            try_="pip install 'transformers>=5.2'"
            if missing
            else "leave it out; TaskMixture(bucket_steps=...) groups rows by length",
        )
    if args.label_smoothing_factor:
        raise ConfigError(
            "label smoothing replaces the model's loss, which knows the tasks' heads",
            where="TrainingArguments",
            got=f"label_smoothing_factor={args.label_smoothing_factor}",
            allowed="0 with a mixture of tasks",
            try_=f"Classification(n, label_smoothing={args.label_smoothing_factor}) in the tasks that want it",
        )
    if not args.eval_do_concat_batches:
        raise ConfigError(
            "the metrics need the whole corpus in one piece",
            where="TrainingArguments",
            got="eval_do_concat_batches=False",
            allowed="True, the default, with a mixture of tasks",
            try_="leave it out",
        )
    if args.label_names is not None and "labels" not in args.label_names:
        raise ConfigError(
            "the labels are not among label_names, so nothing could be scored",
            where="TrainingArguments",
            got=f"label_names={list(args.label_names)}",
            allowed="['labels'], or with 'task_ids' beside it",
            try_="leave it out",
        )
    if args.auto_find_batch_size:
        raise ConfigError(
            "auto_find_batch_size changes the batch size in mid-run, which breaks the planned order",
            where="TrainingArguments",
            got="auto_find_batch_size=True",
            allowed="False, the default",
            try_="auto_find_batch_size=False and a smaller per_device_train_batch_size with more accumulation",
        )


def require_same_tasks(model: Any, mixture: Mixture) -> None:
    """Refuse a model of other tasks than the mixture's.

    Raises:
        ConfigError: the tasks differ, or their order.
        DataError: a label is outside the classes of the base's own head.
    """
    names, wanted = (tuple(task.name for task in getattr(one, "tasks", ())) for one in (model, mixture))
    if names and names != wanted:
        raise ConfigError(
            "model and mixture do not have the same tasks in the same order, and rows name their task by number",
            where="TaskMixture",
            got=", ".join(wanted),
            allowed=", ".join(names),
            try_="make both from one list of tasks",
        )
    ids = getattr(model, "ids", ())
    if names and ids != tuple(range(len(ids))):
        raise ConfigError(
            "a task was removed from the model, and the mixture counts those that are left from 0",
            where="TaskMixture",
            got=f"ids {', '.join(map(str, ids))}",
            allowed="ids from 0 on without gaps",
            try_="save the model and load it again, which counts its tasks anew",
        )
    for task in mixture.tasks if names else ():
        if isinstance(task.head, OwnHead) and task.head.labels in ("auto", "classes"):
            _require_classes(task.name, mixture.texts(task.name, "train"), getattr(model.base.config, "num_labels", 0))


def _require_classes(task: str, columns: Columns, count: int) -> None:
    """Refuse labels that the base's own head has no class for; ``count`` 1 is a regression."""
    for row, label in enumerate(columns.labels or () if count > 1 else ()):
        if len(label) == 1 and not 0 <= label[0] < count and label[0] != IGNORE:
            raise DataError(
                "label is outside the classes of the base's own head",
                where=f"task {task!r}, train, row {row}",
                got=f"{label[0]:g}",
                allowed=f"0..{count - 1}",
                try_=f"load the base with num_labels={int(label[0]) + 1} or more",
            )


#: What Trainer puts before its results, unless they begin so already; and what it reports them under.
_PREFIXES = ("eval", "test", "train")


def require_mixture(mixture: Mixture, where: str) -> None:
    """Refuse what is no mixture of tasks, ahead of the first look into it.

    Raises:
        ConfigError: it has no tasks.
    """
    if not hasattr(mixture, "tasks") or not hasattr(mixture, "schedule"):
        raise ConfigError(
            "no mixture of tasks",
            where=where,
            got=repr(mixture),
            allowed="hfadapt.TaskMixture",
            try_="hfadapt.TaskMixture(tasks, tokenizer)",
        )


def require_names(tasks: Iterable[Task]) -> None:
    """Refuse tasks whose results Trainer would take for prefixed ones: they would come under another name than theirs.

    Raises:
        TaskError: a task is called ``eval``, ``test`` or ``train``, or begins with one of these and ``_``.
    """
    for task in tasks:
        prefix = next((one for one in _PREFIXES if task.name == one or task.name.startswith(f"{one}_")), None)
        if prefix is not None:
            raise TaskError(
                "Trainer tells its metrics apart by this beginning of their names",
                where=f"task {task.name!r}",
                got=f"a name that begins with {prefix!r}",
                allowed=f"any other name, {', '.join(f'{one}, {one}_...' for one in _PREFIXES)} excepted",
                try_=f"'my_{task.name}'",
            )


def settle_best_metric(args: TrainingArguments, metrics: MultiTaskMetrics) -> None:
    """Give ``greater_is_better`` the direction of ``metric_for_best_model``, where that is one of the tasks' metrics.

    transformers takes every metric whose name does not end in ``loss`` for one where more is better, and looks for the
    name only when it has evaluated.

    Raises:
        ConfigError: ``greater_is_better=False`` was given for a metric where more is better, or no evaluation reports
            a result of that name.
    """
    name = args.metric_for_best_model
    if name and args.eval_strategy != "no" and not metrics.reports(name):
        raise ConfigError(
            "no evaluation reports this result, by which the best model would be chosen",
            where="TrainingArguments",
            got=f"metric_for_best_model={name!r}",
            allowed=", ".join(metrics.names),
            try_=did_you_mean(name.removeprefix("eval_"), metrics.names)
            or "mix.metrics.other_names = (...,) if a compute_metrics of your own adds it",
        )
    better = metrics.direction(name) if name else None
    if better is None or args.greater_is_better is better:
        return
    if args.greater_is_better is False:
        # its default here is True, so someone chose this
        raise ConfigError(
            "of this metric more is better",
            where="TrainingArguments",
            got=f"metric_for_best_model={name!r}, greater_is_better=False",
            allowed="greater_is_better=True, or none",
            try_="leave greater_is_better out: the metric says its direction",
        )
    args.greater_is_better = better
    logger.warning("greater_is_better set to %s: of %s %s is better", better, name, "more" if better else "less")


def takes_task_ids(model: nn.Module | None) -> bool:
    """Say whether the model's ``forward`` names ``task_ids``, so that the Trainer keeps that column."""
    return model is not None and "task_ids" in inspect.signature(model.forward).parameters


def base_name(model: Any) -> str:
    """Return the name of the model's base, under which its tokenizer is found.

    Raises:
        DataError: it has none.
    """
    config = getattr(model, "config", None)
    name = getattr(config, "base_model_name_or_path", None) or getattr(config, "_name_or_path", None)
    if not name:
        raise DataError(
            "no tokenizer is known",
            where="TaskMixture",
            got="a model without a name",
            allowed="a tokenizer, or a model whose config says where it came from",
            try_="TaskMixture(tasks, tokenizer=...), or Trainer(processing_class=tokenizer)",
        )
    return name
