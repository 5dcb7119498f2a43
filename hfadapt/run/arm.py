"""Training of one arm: a MultiTaskModel, its mixture, a stock Trainer, and what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from hfadapt.run.progress import ProgressLines
from hfadapt.run.results import ArmResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt.data import TaskMixture
    from hfadapt.tasks import Task

__all__ = ["TokenCounter", "Trained", "count_parameters", "merge", "train_arm"]


class TokenCounter:
    """A collator that counts the real tokens it hands out; works in the process that trains."""

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collator = collator
        self.tokens = 0
        self.counting = True

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Collate, and count where a mask says 1."""
        batch = self.collator(rows)
        if self.counting:
            self.tokens += sum(
                int(batch[key].sum()) for key in ("attention_mask", "pair_attention_mask") if key in batch
            )
        return batch


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
    """A trained arm: its result, and the Trainer with model and data for what follows."""

    result: ArmResult
    trainer: Trainer


def train_arm(
    name: str,
    title: str,
    model: PreTrainedModel,
    mixture: TaskMixture,
    arguments: TrainingArguments,
    *,
    base_parameters: int,
    callbacks: Sequence[TrainerCallback] = (),
    tokenizer: Any = None,
    resume: bool | str = False,
    test_split: str = "test",
) -> Trained:
    """Train with a stock Trainer and score on the test split.

    Args:
        name: Of the arm.
        title: For progress and tables.
        model: A ``MultiTaskModel``.
        mixture: Its tasks' data.
        arguments: Of the Trainer.
        base_parameters: Parameters of the base, to tell what was added.
        callbacks: Beside those of the mixture.
        tokenizer: Saved with checkpoints.
        resume: As ``Trainer.train(resume_from_checkpoint=...)``.
        test_split: Falls back to the validation split for data without labelled test rows.
    """
    clock = _StepClock()
    counter = TokenCounter(mixture.collator)
    trainer = _RunTrainer(
        model=model,
        args=arguments,
        train_dataset=mixture.train,
        eval_dataset=mixture.eval,
        data_collator=counter,
        compute_metrics=mixture.metrics,
        processing_class=tokenizer,
        callbacks=[*mixture.callbacks, *callbacks, clock, ProgressLines(title)],
    )
    trainer.token_counter = counter
    # Trainer prints its logs when its own progress bar is off; ProgressLines shows them.
    _drop_printer(trainer)
    trainer.train(resume_from_checkpoint=resume or None)
    counter.counting = False
    split = test_split if mixture.has_split(test_split) else "validation"
    scores = trainer.predict(mixture.dataset(split, by_length=True), metric_key_prefix="test").metrics or {}
    test, macro = by_task(scores, mixture.tasks)
    total = count_parameters(model)
    result = ArmResult(
        name=name,
        title=title,
        test=test,
        macro=macro,
        parameters_total=total,
        parameters_task=(total - base_parameters) // len(mixture.tasks),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=trainer.state.global_step,
        seconds=clock.seconds,
        tokens=counter.tokens,
        history=tuple(trainer.state.log_history),
    )
    return Trained(result, trainer)


class _RunTrainer(Trainer):
    """The stock Trainer, which pauses the token count while it evaluates."""

    token_counter: TokenCounter

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        before, self.token_counter.counting = self.token_counter.counting, False
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.token_counter.counting = before


def _drop_printer(trainer: Trainer) -> None:
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def by_task(scores: Mapping[str, float], tasks: Sequence[Task]) -> tuple[dict[str, dict[str, float]], float]:
    """Sort ``test_<task>_<metric>`` by task, and the macro average."""
    test = {
        task.name: {
            metric: float(scores[key]) for metric in task.metrics if (key := f"test_{task.name}_{metric}") in scores
        }
        for task in tasks
    }
    return test, float(scores.get("test_macro", float("nan")))


def count_parameters(model: PreTrainedModel) -> int:
    """Parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def merge(name: str, title: str, parts: Mapping[str, ArmResult]) -> ArmResult:
    """One arm out of a separate model for each task.

    Args:
        name: Of the arm.
        title: For tables.
        parts: Task to its own model's result.
    """
    results = list(parts.values())
    return ArmResult(
        name=name,
        title=title,
        test={task: result.test[task] for task, result in parts.items()},
        macro=sum(result.macro for result in results) / len(results),
        parameters_total=sum(result.parameters_total for result in results),
        parameters_task=sum(result.parameters_total for result in results) // len(results),
        trained=sum(result.trained for result in results),
        steps=sum(result.steps for result in results),
        seconds=sum(result.seconds for result in results),
        tokens=sum(result.tokens for result in results),
        history=tuple({**line, "task": task} for task, result in parts.items() for line in result.history),
    )


def checkpoint_folder(output: Path, arm: str) -> Path:
    """Where an arm keeps its checkpoints."""
    return output / "checkpoints" / arm
