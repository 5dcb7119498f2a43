"""Tasks that have converged stop, and leave their share of the steps to the others."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import ConfigError, TaskError, did_you_mean
from ..errors.arguments import require_mapping
from ..errors.limits import require_number
from ..multitask.metrics import find_metric
from .checks import Mixture, require_mixture

__all__ = ["STOPPED", "TaskEarlyStopping"]

logger = logging.getLogger(__name__)

#: Key of the lines in Trainer's ``log_history`` that say which task stopped.
STOPPED = "stopped_task"


class Stop(NamedTuple):
    """Where a task stopped: the optimizer step of the evaluation, the best score, and the step of that."""

    step: int
    best: float
    best_step: int


class TaskEarlyStopping(TrainerCallback):
    """Stops each task of a mixture on its own, once its score has not improved for ``patience`` evaluations.

    From the next epoch of the mixture on no row of a stopped task is drawn: its adapter and head stay bit for bit as
    they are (what has no row has no gradient), and the other tasks share its steps in the proportion that they had.
    Where the last task stops, the run ends. A base that is trained along moves on for all tasks.

    What has stopped follows from Trainer's ``log_history`` alone, which is in every checkpoint, so that a resumed run
    goes on as an uninterrupted one would; each stop is a line of it (``{"stopped_task": "rte", "step": 300, ...}``).

    Args:
        mixture: Whose tasks are watched; the Trainer needs its callbacks too.
        patience: Evaluations in a row without improvement.
        threshold: By how much a score must be better than the best before, to count as one.
        metrics: Task to the metric that decides, where that is not its first one; ``None`` for a task never to stop.

    Raises:
        ConfigError: a number is out of range.
        TaskError: no task or metric has such a name, or a task has no metric or no labelled validation rows.
    """

    def __init__(
        self,
        mixture: Mixture,
        patience: int = 3,
        *,
        threshold: float = 0.0,
        metrics: Mapping[str, str | None] | None = None,
    ) -> None:
        require_number("patience", patience, where="TaskEarlyStopping", whole=True, least=1)
        require_number("threshold", threshold, where="TaskEarlyStopping", least=0)
        require_mixture(mixture, "TaskEarlyStopping")
        allowed = "a dict: task to a metric, or to None"
        metrics = require_mapping("metrics", metrics, where="TaskEarlyStopping", allowed=allowed)
        self.mixture = mixture
        self.patience = patience
        self.threshold = threshold
        #: Task to the name and direction of what decides; tasks that never stop are left out.
        self.watched = self._chosen(dict(metrics))
        self.stopped: dict[str, Stop] = {}
        self._training = False

    def _chosen(self, metrics: dict[str, str | None]) -> dict[str, tuple[str, bool]]:
        names = [task.name for task in self.mixture.tasks]
        for name in metrics:
            if name not in names:
                hint = did_you_mean(name, names)
                raise TaskError(
                    f"no task {name!r}",
                    where="TaskEarlyStopping(metrics=...)",
                    got=repr(name),
                    allowed=", ".join(names),
                    try_=hint or "leave metrics out: each task stops by its first metric",
                )
        found = {}
        for task in self.mixture.tasks:
            metric = metrics.get(task.name, task.metrics[0] if task.metrics else "")
            if metric is None:
                continue
            where = f"TaskEarlyStopping, task {task.name!r}"
            if metric not in task.metrics:
                raise TaskError(
                    "the task is not scored by that metric",
                    where=where,
                    got=repr(metric) if metric else "no metric",
                    allowed=", ".join(task.metrics) or "a task with metrics",
                    try_=did_you_mean(metric, task.metrics) or f"metrics={{{task.name!r}: None}} to let it train on",
                )
            if not self.mixture.has_labels(task.name, "validation"):
                raise TaskError(
                    "nothing tells when the task has converged: it has no labelled validation rows",
                    where=where,
                    got="no labels in the split validation",
                    allowed="a labelled split validation",
                    try_=f"metrics={{{task.name!r}: None}} to let it train on",
                )
            found[task.name] = (f"eval_{task.name}_{metric}", find_metric(metric).greater_is_better)
        return found

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a run that evaluates nothing.

        Raises:
            ConfigError: ``eval_strategy`` is ``no``.
        """
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            raise ConfigError(
                "tasks stop by their validation scores, and this run never evaluates",
                where="TaskEarlyStopping",
                got="eval_strategy='no'",
                allowed="'epoch' or 'steps'",
                try_="TrainingArguments(eval_strategy='epoch')",
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what had stopped where the run is resumed, or nothing."""
        self._training = True
        self.stopped = self._follow(state.log_history)
        self._apply()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluations after the run stop nothing."""
        self._training = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop what has not improved for long enough.

        Raises:
            ConfigError: the evaluation held no score of a watched task.
        """
        if not self._training:
            return
        given = kwargs.get("metrics") or {}
        lost = [key for name, (key, _) in self.watched.items() if key not in given and name not in self.stopped]
        if lost:
            raise ConfigError(
                "an evaluation gave no score of a task that stops by it",
                where="TaskEarlyStopping",
                got=f"no {', '.join(lost)}",
                allowed="what mix.metrics returns for the rows of every task",
                try_="Trainer(eval_dataset=mix.eval, compute_metrics=mix.metrics)",
            )
        known, self.stopped = self.stopped, self._follow(state.log_history)
        for name in self.stopped.keys() - known.keys():
            stop = self.stopped[name]
            line = {STOPPED: name, "best": stop.best, "best_step": stop.best_step, "patience": self.patience}
            state.log_history.append({**line, "step": stop.step, "epoch": state.epoch})
            said = f"best {self.watched[name][0]} {stop.best:.4g} at step {stop.best_step}"
            logger.warning("task %r stops at step %d, %s; its share goes to the others", name, stop.step, said)
        self._apply()
        if len(self.stopped) == len(self.mixture.tasks):
            logger.warning("all tasks have stopped, and so does the run, at step %d", state.global_step)
            control.should_training_stop = True

    def _follow(self, history: Sequence[Mapping[str, Any]]) -> dict[str, Stop]:
        """Return which tasks stopped where, from Trainer's log."""
        found = {}
        for name, (key, greater) in self.watched.items():
            best, best_step, waited = -math.inf, 0, 0
            for line in history:
                if key not in line or STOPPED in line:
                    continue
                score = float(line[key]) * (1 if greater else -1)
                # NaN is no improvement
                if score > best + self.threshold or (best == -math.inf and not math.isnan(score)):
                    best, best_step, waited = score, int(line["step"]), 0
                else:
                    waited += 1
                if waited == self.patience:
                    found[name] = Stop(int(line["step"]), best if greater else -best, best_step)
                    break
        return found

    def _apply(self) -> None:
        """Tell the schedule from which epoch on each stopped task is not drawn."""
        steps = self.mixture.schedule.steps
        names = [task.name for task in self.mixture.tasks]
        self.mixture.train.stop({names.index(name): -(-stop.step // steps) for name, stop in self.stopped.items()})
