"""Scores of a saved adapter on its tasks' data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.sources import load_splits
from ..errors import DataError, did_you_mean
from ..errors.names import names_of
from .arm import macro_average, score
from .finished_run import find_run

if TYPE_CHECKING:
    from ..inference.predict import Predictor
    from ..multitask.task import Task

__all__ = ["evaluate_folder"]


def evaluate_folder(
    folder: Path,
    data: Mapping[str, str],
    tasks: str | Sequence[str],
    split: str | None,
    batch_size: int,
    base: str | None = None,
) -> dict[str, Any]:
    """Score an adapter folder.

    Args:
        folder: A run's, whose recipe says where its tasks' data are; or one that holds an adapter.
        data: Task to where its data are; tasks of a run, and those named like a data set, need none.
        tasks: Which to score, or one name; all when empty.
        split: Of the data; by default those that the run was scored on, or ``test``.
        batch_size: Rows a forward.
        base: Name or folder of the base, where the folder's own does not lead to it.

    Returns:
        ``{"split": ..., "splits": {task: split}, "tasks": {task: {metric: value}}, "macro": ...}``

    Raises:
        DataError: an unknown task, or data without that split.
    """
    from ..inference.predict import Predictor

    tasks = names_of(tasks) if tasks else ()
    run = find_run(folder)
    predictor = (
        Predictor.from_folder(folder, base=base)
        if run is None
        else Predictor.from_folder(run.adapter, base=base or run.base)
    )
    names = [task.name for task in predictor.tasks]
    for name in (*tasks, *data):
        if name not in names:
            raise DataError(
                f"no task {name!r}",
                where=str(folder),
                got=name,
                allowed=", ".join(names),
                try_=did_you_mean(name, names) or f"--data {names[0]}=PATH",
            )
    wanted = [task for task in predictor.tasks if not tasks or task.name in tasks]
    remembered = run.data([task.name for task in wanted if task.name not in data]) if run is not None else {}
    groups: dict[str, list[Task]] = {}
    for task in wanted:
        rows = remembered[task.name] if task.name in remembered else _rows_of(task, data.get(task.name))
        place = split or (run.splits.get(task.name) if run is not None else None) or "test"
        if place not in rows:
            raise DataError(
                f"no split {place!r}",
                where=f"task {task.name!r}",
                got=place,
                allowed=", ".join(rows),
                try_=did_you_mean(place, rows) or "--split with one of these",
            )
        # A mixture wants training rows; nothing is trained here, so the scored split stands in for them.
        scored = dataclasses.replace(task, data={"train": rows[place], place: rows[place]}, splits={})
        groups.setdefault(place, []).append(scored)
    found: dict[str, dict[str, float]] = {}
    for place, group in groups.items():
        found.update(_score(predictor, group, place, folder, batch_size))
    scores = {task.name: found[task.name] for task in wanted}
    splits = {task.name: place for place, group in groups.items() for task in group}
    shown = next(iter(groups)) if len(groups) == 1 else "each task's own"
    return {"split": shown, "splits": splits, "tasks": scores, "macro": macro_average(scores, wanted)}


def _rows_of(task: Task, given: str | None) -> Mapping[str, Any]:
    """The splits of data that were named on the command line, or that a task's name tells."""
    from .build import known_task

    known = known_task(given or task.name)
    source = known.data if known else given
    if source is None:
        raise DataError(
            "its data are not known",
            where=f"task {task.name!r}",
            got="the folder of an adapter, and no --data",
            allowed="the folder of a run, a task named like a data set, or --data",
            try_=f"--data {task.name}=PATH",
        )
    return load_splits(dataclasses.replace(task, data=source))


def _score(
    predictor: Predictor, scored: list[Task], split: str, folder: Path, batch_size: int
) -> dict[str, dict[str, float]]:
    """Scores of some of a model's tasks on one split of theirs."""
    import torch
    from transformers import Trainer, TrainingArguments

    from ..training import TaskMixture

    mixture = TaskMixture(scored, predictor.tokenizer)
    names = [task.name for task in predictor.tasks]
    ids = [names.index(task.name) for task in scored]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=batch_size,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=predictor.model,
        args=arguments,
        data_collator=_Renumbered(mixture.collator, ids),
        compute_metrics=_Scores(mixture.metrics, ids),
    )
    return score(trainer, mixture.dataset(split, by_length=True), scored)[0]


class _Renumbered:
    """Gives rows the task numbers of the model, which may know more tasks than are scored."""

    def __init__(self, collator: Any, ids: list[int]) -> None:
        self.collator, self.ids = collator, ids

    def __call__(self, rows: list[Any]) -> Any:
        return self.collator([{**row, "task_ids": self.ids[int(row["task_ids"])]} for row in rows])


class _Scores:
    """Takes the model's task numbers back to those of the scored tasks."""

    def __init__(self, metrics: Any, ids: list[int]) -> None:
        self.metrics, self.ids = metrics, ids

    def __call__(self, prediction: Any) -> Any:
        import numpy as np

        logits, task_ids = prediction.predictions[0], np.asarray(prediction.predictions[-1])
        back = {number: index for index, number in enumerate(self.ids)}
        prediction.predictions = (logits, np.array([back[int(number)] for number in task_ids]))
        return self.metrics(prediction)
