"""Scores of a saved adapter on its tasks' data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean
from ..errors.names import names_of

__all__ = ["evaluate_folder"]


def evaluate_folder(
    folder: Path, data: Mapping[str, str], tasks: str | Sequence[str], split: str, batch_size: int
) -> dict[str, Any]:
    """Score an adapter folder.

    Args:
        folder: Written by ``hfadapt train``.
        data: Task to where its data are; tasks named like a data set need none.
        tasks: Which to score, or one name; all when empty.
        split: Of the data.
        batch_size: Rows a forward.

    Returns:
        ``{"split": ..., "tasks": {task: {metric: value}}, "macro": ...}``

    Raises:
        DataError: an unknown task, or data without that split.
    """
    from transformers import Trainer, TrainingArguments

    from ..data.sources import load_splits
    from ..inference.predict import Predictor
    from ..training import TaskMixture
    from .arm import score
    from .build import known_task

    tasks = names_of(tasks) if tasks else ()
    predictor = Predictor.from_folder(folder)
    names = [task.name for task in predictor.tasks]
    for name in (*tasks, *data):
        if name not in names:
            raise DataError(f"no task {name!r}", allowed=", ".join(names), try_=did_you_mean(name, names))
    filled = []
    for task in predictor.tasks:
        known = known_task(data.get(task.name, task.name))
        source = known.data if known else data.get(task.name)
        wanted = not tasks or task.name in tasks
        if wanted and source is None:
            raise DataError("its data are not known", where=f"task {task.name!r}", try_="--data TASK=PATH")
        rows = load_splits(dataclasses.replace(task, data=source)) if wanted else None
        if rows is not None and split not in rows:
            raise DataError(f"no split {split!r}", where=f"task {task.name!r}", allowed=", ".join(rows))
        filled.append((task, rows))
    # A mixture wants training rows; nothing is trained here, so the scored split stands in for them.
    scored = [
        dataclasses.replace(task, data={"train": rows[split], split: rows[split]}) for task, rows in filled if rows
    ]
    mixture = TaskMixture(scored, predictor.tokenizer)
    ids = [names.index(task.name) for task in scored]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=batch_size,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=predictor.model,
        args=arguments,
        data_collator=_Renumbered(mixture.collator, ids),
        compute_metrics=_Scores(mixture.metrics, ids),
    )
    found, macro = score(trainer, mixture.dataset(split, by_length=True), scored)
    return {"split": split, "tasks": found, "macro": macro}


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
