"""From a recipe to the objects of a run: tasks with their data, tokenizer, mixture, TrainingArguments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import bundled
from ..data.columns import label_names_in, read_columns
from ..data.glue import GLUE
from ..data.problems import problems_in
from ..data.sources import files_of, load_splits
from ..errors import ConfigError, DataError, HFAdaptError, TaskError, did_you_mean, raise_all
from ..multitask.heads import Classification, Head, MultiLabel, Regression, TokenClassification
from ..multitask.task import Task
from ..training import MultiTaskMetrics, TaskMixture
from .config import Recipe, TaskSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

__all__ = [
    "TRAINING_DEFAULTS",
    "build_mixture",
    "build_task",
    "build_tasks",
    "check_scorable",
    "hold_out",
    "known_task",
    "training_arguments",
]


def build_tasks(recipe: Recipe) -> list[Task]:
    """The recipe's tasks with their data loaded.

    Raises:
        DataError: what is wrong with the data of all tasks, with file, line and column.
    """
    tasks: list[Task] = []
    found: list[HFAdaptError] = []
    for section in recipe.tasks:
        try:
            tasks.append(build_task(section))
        except (DataError, TaskError) as error:
            found.append(error)
    raise_all(found)
    return tasks


def build_task(section: TaskSection) -> Task:
    """One task; what a named data set knows of itself (head, metrics, label names, columns) need not be said again.

    Labels that are texts tell the number and the names of the classes, where the recipe does not.

    Raises:
        TaskError: no head is given and the data do not tell it.
        DataError: the data cannot be loaded, or are not what the head needs.
    """
    data = section.data if section.data is not None else section.name
    known = known_task(data) if isinstance(data, str) else None
    columns = section.columns or (known.columns if known else {})
    splits = section.splits or (known.splits if known else {})
    draft = Task(
        section.name, section.head or Classification(), known.data if known else data, (), columns, splits=splits
    )
    rows = load_splits(draft)
    head, label_names = _labels_of(section, known, draft, rows)
    task = dataclasses.replace(
        draft,
        head=head,
        data=rows,
        metrics=section.metrics or (known.metrics if known and section.head is None else ()),
        pair=section.pair,
        loss_weight=section.loss_weight,
        label_names=label_names,
        max_length=section.max_length,
        splits={},
    )
    task = _limited(task, section.limit) if section.limit else task
    raise_all(problems_in(task, load_splits(task), files_of(draft)))
    return task


def _labels_of(
    section: TaskSection, known: Task | None, draft: Task, rows: Mapping[str, Any]
) -> tuple[Head, Sequence[str] | None]:
    """The head of a task and the names of its classes, as far as the recipe leaves them to the data."""
    given = section.head or (known.head if known else None)
    names = section.label_names or (known.label_names if known else None)
    counts = isinstance(given, (Classification, MultiLabel, TokenClassification))
    if names is None and (given is None or counts):
        names = label_names_in(draft, rows["train"])
    if given is None and names is None:
        raise TaskError(
            "the head is not given, and the data do not tell it",
            where=f"task {section.name!r}",
            got=f"labels in column {draft.column('label')!r} that are no texts",
            allowed="a named data set, labels that are texts, or a key 'head'",
            try_="head: {kind: classification, num_labels: 2}",
        )
    if names is not None and len(names) < 2 and not (given is not None and isinstance(given, MultiLabel)):
        raise DataError(
            "the training rows have one label only",
            where=f"task {section.name!r}, column {draft.column('label')!r}",
            got=", ".join(map(repr, names)),
            allowed="2 classes or more",
            try_="label_names with all classes, or look for a wrong column",
        )
    if given is None:
        given, counts = Classification(len(names or ())), True
    if not counts or names is None or given.num_outputs == len(names):
        return given, names
    if section.counts_labels and section.label_names is None:
        raise DataError(
            "the head has another number of classes than the data",
            where=f"task {section.name!r}, column {draft.column('label')!r}",
            got=f"num_labels {given.num_outputs}, and {len(names)} labels: {', '.join(map(repr, names[:20]))}",
            allowed=f"num_labels {len(names)}, or none: the data tell it",
            try_="leave num_labels out, or look for misspelt labels",
        )
    # a number that was written and does not fit the names that were written is `Task`'s to refuse
    return (given if section.counts_labels else dataclasses.replace(given, num_labels=len(names))), names


def known_task(data: str, *, rows: bool = True) -> Task | None:
    """What is known of a data set by its name: bundled or built, or a GLUE task; without its rows if so asked."""
    if data in bundled.BUNDLED + bundled.BUILT:
        description = bundled.describe(data)
        regression = description.kind == "regression"
        head: Head = Regression() if regression else Classification(description.num_labels)
        loaded = bundled.load(data) if rows else data
        return Task(data, head, loaded, metrics=(description.metric,), label_names=description.labels)
    return GLUE.get(data.removeprefix("glue:"))


def _limited(task: Task, limit: Mapping[str, int]) -> Task:
    rows = dict(load_splits(task))
    unknown = sorted(set(limit) - set(rows))
    if unknown:
        raise TaskError(
            "a limit for a split that the data lack",
            where=f"task {task.name!r}",
            got=", ".join(unknown),
            allowed=", ".join(rows),
            try_=did_you_mean(unknown[0], rows) or f"limit: {{{next(iter(rows))}: {next(iter(limit.values()))}}}",
        )
    for split, most in limit.items():
        rows[split] = rows[split].select(range(min(most, len(rows[split]))))
    return dataclasses.replace(task, data=rows, splits={})


#: Share of the training rows that stands in for a validation split.
HELD_OUT = 0.1


def hold_out(tasks: Sequence[Task], seed: int) -> tuple[list[Task], dict[str, tuple[int, int]]]:
    """Give each task without labelled validation rows a part of its training rows to be scored on.

    Args:
        tasks: With their data.
        seed: Of the choice.

    Returns:
        The tasks, and for each that needed it: how many rows are held out, and of how many.

    Raises:
        DataError: a task has only one training row.
    """
    found, held = [], {}
    for task in tasks:
        rows = dict(load_splits(task))
        if _has_labels(task, rows):
            found.append(task)
            continue
        total = len(rows["train"])
        count = max(1, round(HELD_OUT * total))
        if total < 2:
            raise DataError(
                "no validation split, and too few training rows to hold any out",
                where=f"task {task.name!r}",
                got=f"{total} training row",
                allowed="a labelled split validation, or 2 training rows or more",
                try_="a second labelled row in train",
            )
        order = np.random.default_rng(seed).permutation(total)
        train = rows["train"]
        rows["train"], rows["validation"] = (
            train.select(sorted(order[count:].tolist())),
            train.select(sorted(order[:count].tolist())),
        )
        held[task.name] = (count, total)
        found.append(dataclasses.replace(task, data=rows, splits={}))
    return found, held


def _has_labels(task: Task, rows: Mapping[str, Any]) -> bool:
    if not len(rows.get("validation", ())):
        return False
    columns = read_columns(task, "validation", rows["validation"])
    return columns.labels is not None or columns.targets is not None


def check_scorable(tasks: Sequence[Task]) -> None:
    """Refuse tasks that a run could train and then not score or name.

    Raises:
        TaskError: a task has no metric, or a name or a result's name that Trainer uses itself.
    """
    from ..training.checks import require_names

    require_names(tasks)
    MultiTaskMetrics(tasks)
    for task in tasks:
        if not task.metrics:
            raise TaskError(
                "a run compares scores, and the task has no metric",
                where=f"task {task.name!r}",
                got=type(task.head).__name__,
                allowed=", ".join(task.head.allowed_metrics) or "a metric of yours",
                try_="metrics: [accuracy]",
            )


def build_mixture(
    recipe: Recipe,
    tasks: Sequence[Task],
    tokenizer: PreTrainedTokenizerBase,
    *,
    epoch_steps: int | None = None,
    epochs: int | None = None,
    cache: Path | None = None,
) -> TaskMixture:
    """The mixture of the recipe, tokenised.

    Args:
        recipe: Its section ``mixing`` is read.
        tasks: All tasks of the recipe, or one of them for a baseline.
        tokenizer: Of the base.
        epoch_steps: In place of the recipe's.
        epochs: E of the strategy, to plan before a Trainer exists.
        cache: Folder for tokenised data; arms of a run share it.
    """
    mixing = recipe.mixing
    return TaskMixture(
        tasks,
        tokenizer,
        strategy=mixing.strategy,
        batch=mixing.batch,
        batch_size=mixing.batch_size,
        seed=recipe.seed,
        epoch_steps=epoch_steps or mixing.epoch_steps,
        epochs=epochs,
        cache_dir=cache,
        bucket_steps=mixing.bucket_steps,
    )


#: Fields of TrainingArguments that a run sets where the recipe does not.
TRAINING_DEFAULTS: Mapping[str, Any] = {
    "report_to": [],
    "disable_tqdm": True,
    "logging_strategy": "epoch",
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "per_device_eval_batch_size": 64,
}


def training_arguments(recipe: Recipe, folder: Path, changes: Mapping[str, Any] | None = None) -> TrainingArguments:
    """``TrainingArguments`` of the recipe; quiet, because the run reports its own progress.

    Args:
        recipe: Its section ``training`` is taken field by field.
        folder: Where checkpoints go.
        changes: Fields that a baseline sets for itself.

    Raises:
        ConfigError: transformers refuses the fields as they stand together.
    """
    import torch
    from transformers import TrainingArguments

    defaults = {**TRAINING_DEFAULTS, "dataloader_pin_memory": torch.cuda.is_available()}
    # Which device to take is transformers' choice; the seed also orders the data.
    fixed: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": recipe.seed,
        "per_device_train_batch_size": recipe.mixing.batch_size,
        "remove_unused_columns": False,
    }
    taken = inspect.signature(TrainingArguments).parameters
    values = {**defaults, **recipe.training, **(changes or {}), **fixed}
    try:
        return TrainingArguments(**{name: value for name, value in values.items() if name in taken})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(
            f"TrainingArguments refuses these fields: {error}",
            where="training",
            got=", ".join(f"{name}={value!r}" for name, value in {**recipe.training, **(changes or {})}.items())[:300],
            allowed="fields that transformers takes together on this machine",
            try_="change the field that it names under training:, or leave it out for the default",
        ) from error
