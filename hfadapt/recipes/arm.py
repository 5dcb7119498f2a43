"""Training of one arm: a MultiTaskModel, its mixture, a stock Trainer, and what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..errors import DataError
from ..errors.full_disk import writing
from ..training import macro_of, regularize, task_optimizer
from .progress import ProgressLines
from .results import ArmResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..multitask.task import Task
    from ..training import TaskMixture

__all__ = [
    "Trained",
    "by_split",
    "count_parameters",
    "drop_printer",
    "macro_average",
    "make_trainer",
    "merge",
    "pack_frozen",
    "score",
    "stand_ins",
    "train_arm",
]


class _StepClock(TrainerCallback):
    """Adds up the time of training steps, so that evaluations between them do not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._start


@dataclass
class Trained:
    """A trained arm: its result, and its model for what follows."""

    result: ArmResult
    model: PreTrainedModel


def train_arm(
    name: str,
    title: str,
    model: PreTrainedModel,
    mixture: TaskMixture,
    arguments: TrainingArguments,
    *,
    base_parameters: int,
    callbacks: Sequence[TrainerCallback] = (),
    head_learning_rate: float | None = None,
    task_rates: Mapping[str, Mapping[str, float]] | None = None,
    regularizer: Any = None,
    tokenizer: Any = None,
    resume: str | None = None,
    split: str = "test",
) -> Trained:
    """Train with a stock Trainer and score it.

    Args:
        name: Of the arm.
        title: For progress and tables.
        model: A ``MultiTaskModel``.
        mixture: Its tasks' data.
        arguments: Of the Trainer.
        base_parameters: Parameters of the base, to tell what was added.
        callbacks: Beside those of the mixture.
        head_learning_rate: Of the heads, where it differs from the arguments' own.
        task_rates: ``learning_rates`` and ``weight_decays`` of tasks that have their own.
        regularizer: What ``hfadapt.regularize`` takes, or None.
        tokenizer: Saved with checkpoints.
        resume: Folder of a checkpoint to go on from.
        split: Of the scores; falls back to the validation split for data without labelled test rows.
    """
    clock = _StepClock()
    trainer = make_trainer(
        model,
        mixture,
        arguments,
        callbacks=[*callbacks, clock, ProgressLines(title)],
        head_learning_rate=head_learning_rate,
        task_rates=task_rates,
        regularizer=regularizer,
        tokenizer=tokenizer,
    )
    with writing(str(arguments.output_dir), again="train again with --resume: what was saved before is whole"):
        trainer.train(resume_from_checkpoint=resume)
    scores: dict[str, dict[str, float]] = {}
    for found, names in by_split(mixture, split).items():
        of_these = [task for task in mixture.tasks if task.name in names]
        scores.update(score(trainer, mixture.dataset(found, names, by_length=True), of_these)[0])
    macro = macro_average(scores, mixture.tasks)
    total = count_parameters(model)
    result = ArmResult(
        name=name,
        title=title,
        scores=scores,
        macro=macro,
        parameters_total=total,
        parameters_task=(total - base_parameters) // len(mixture.tasks),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=trainer.state.global_step,
        seconds=clock.seconds,
        tokens=trained_tokens(mixture, trainer.state.global_step),
        history=tuple(trainer.state.log_history),
    )
    return Trained(result, model)


def make_trainer(
    model: PreTrainedModel,
    mixture: TaskMixture,
    arguments: TrainingArguments,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    head_learning_rate: float | None = None,
    task_rates: Mapping[str, Mapping[str, float]] | None = None,
    regularizer: Any = None,
    tokenizer: Any = None,
) -> Trainer:
    """The stock Trainer of an arm; arguments as of `train_arm`."""
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=mixture.train,
        eval_dataset=mixture.eval,
        data_collator=mixture.collator,
        compute_metrics=mixture.metrics,
        processing_class=tokenizer,
        callbacks=[*mixture.callbacks, *callbacks],
        # Trainer makes the schedule for it; without it, it makes the optimizer too.
        optimizers=(_optimizer(model, arguments, head_learning_rate, task_rates or {}), None),
    )
    # Trainer prints its logs when its own progress bar is off; ProgressLines shows them.
    drop_printer(trainer)
    if regularizer:
        regularize(trainer, regularizer)
    return trainer


def _optimizer(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    head_learning_rate: float | None,
    task_rates: Mapping[str, Mapping[str, float]],
) -> torch.optim.Optimizer | None:
    if not head_learning_rate and not any(task_rates.values()):
        return None
    return task_optimizer(model, arguments, head_learning_rate=head_learning_rate, **task_rates)


def by_split(mixture: TaskMixture, wanted: str) -> dict[str, list[str]]:
    """Split to the tasks that are scored on it: the wanted one, or validation for tasks without labelled rows there.

    Raises:
        DataError: a task has labelled rows in neither.
    """
    found: dict[str, list[str]] = {}
    for task in mixture.tasks:
        split = next((one for one in (wanted, "validation") if mixture.has_labels(task.name, one)), None)
        if split is None:
            raise DataError(
                "there are no labelled rows to score it on",
                where=f"task {task.name!r}",
                got=f"no labels in {wanted} or validation",
                allowed="a labelled split validation or test",
                try_="label the rows of one of these splits, or leave the task out",
            )
        found.setdefault(split, []).append(task.name)
    return found


def stand_ins(scored: Mapping[str, Sequence[str]], wanted: str, held_out: Mapping[str, tuple[int, int]]) -> list[str]:
    """A line for each task that is scored on other rows than were asked for.

    Args:
        scored: As `by_split` returns it.
        wanted: The split that was asked for.
        held_out: Task to how many of how many training rows were held out.
    """
    lines = [
        f"{task}: no labelled validation rows; {rows:,} of its {of:,} training rows are held out instead"
        for task, (rows, of) in held_out.items()
    ]
    return lines + [
        f"{task}: no labelled {wanted} rows; its scores will be those of its {split} rows"
        for split, tasks in scored.items()
        if split != wanted
        for task in tasks
    ]


def macro_average(scores: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> float:
    """The macro average of scores by task and metric; NaN where no task that counts has a score."""
    first = {
        task.name: scores[task.name][task.metrics[0]]
        for task in tasks
        if task.metrics and task.metrics[0] in scores.get(task.name, {})
    }
    average = macro_of(tasks).average(first)
    return math.nan if average is None else average


def trained_tokens(mixture: TaskMixture, steps: int) -> int:
    """Real tokens, padding left out, of the rows that the schedule gave to that many steps."""
    schedule = mixture.schedule
    total = 0
    for epoch in range(-(-steps // schedule.steps)):
        tasks, rows = schedule.index(epoch)
        taken = min(steps - epoch * schedule.steps, schedule.steps) * schedule.layout.step_rows
        for task, lengths in enumerate(schedule.lengths or ()):
            total += int(lengths[rows[:taken][tasks[:taken] == task]].sum())
    return total


def pack_frozen(model: PreTrainedModel) -> None:
    """Pack the linears of a frozen base for this machine's fastest product; a base that trains is left as it is."""
    from ..inference import pack

    if any(not parameter.requires_grad for parameter in model.parameters()):
        pack(model)


def drop_printer(trainer: Trainer) -> None:
    """Let a Trainer print no logs, which it does where its own bar is off; ``ProgressLines`` shows them."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def score(trainer: Trainer, rows: Any, tasks: Sequence[Task]) -> tuple[dict[str, dict[str, float]], float]:
    """Predict a split: metrics by task and by name, and the macro average of the tasks' first metrics."""
    # no task can have a name that begins like this, so Trainer puts it before every result
    values = trainer.predict(rows, metric_key_prefix=":").metrics or {}
    found = {
        task.name: {
            metric: float(values[key]) for metric in task.metrics if (key := f":_{task.name}_{metric}") in values
        }
        for task in tasks
    }
    return found, macro_average(found, tasks)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def merge(name: str, title: str, parts: Mapping[str, ArmResult], tasks: Sequence[Task]) -> ArmResult:
    """One arm out of a separate model for each task.

    Args:
        name: Of the arm.
        title: For tables.
        parts: Task to its own model's result.
        tasks: All of them; they say which metrics can be averaged.
    """
    results = list(parts.values())
    scores = {task: result.scores[task] for task, result in parts.items()}
    return ArmResult(
        name=name,
        title=title,
        scores=scores,
        macro=macro_average(scores, tasks),
        parameters_total=sum(result.parameters_total for result in results),
        parameters_task=sum(result.parameters_total for result in results) // len(results),
        trained=sum(result.trained for result in results),
        steps=sum(result.steps for result in results),
        seconds=sum(result.seconds for result in results),
        tokens=sum(result.tokens for result in results),
        history=tuple({**line, "task": task} for task, result in parts.items() for line in result.history),
    )
