"""The recipe: what ``hfadapt train`` reads. Every section is a frozen dataclass; README and docs show an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ...data.mixing import MixingStrategy
    from ...method.config import MethodConfig
    from ...multitask.heads import Head
    from ...training import Regularizer

__all__ = [
    "BASELINES",
    "Baseline",
    "EarlyStoppingSection",
    "MixingSection",
    "Recipe",
    "SearchSection",
    "Spread",
    "TaskSection",
]

NO_KEY = "no key"
"""In a field's metadata: no recipe sets it."""

Baseline = Literal["frozen_head", "full_finetuning"]
BASELINES: tuple[Baseline, ...] = ("frozen_head", "full_finetuning")


@dataclass(frozen=True)
class TaskSection:
    """One task of a recipe.

    Args:
        name: Of the task; also of its data where ``data`` is left out.
        data: A bundled or built data set's name, a file or folder, a mapping from split to file, or a name for
            ``datasets.load_dataset`` (``glue:mrpc``).
        head: Kind and options, as ``{kind: classification, num_labels: 3}``; known for named data sets.
        metrics: Names of metrics; the first counts for the macro average.
        columns: Names of the columns for ``text``, ``text_pair`` and ``label``, where they differ.
        pair: ``joint`` (one sequence) or ``separate`` (each text encoded alone).
        loss_weight: Factor of this task's loss.
        label_names: Names of the classes, in order.
        max_length: Longest sequence in tokens.
        splits: Names of the splits ``train``, ``validation`` and ``test`` in the data, where they differ.
        limit: Most rows to use of a split, as ``{train: 2000}``.
        learning_rate: Of this task's adapter and head in the adapted run, in place of ``training.learning_rate`` and
            ``head_learning_rate``.
        weight_decay: Of the same, in place of ``training.weight_decay``.
        regularizer: Of this task, in place of the recipe's.
        counts_labels: Whether the recipe says ``num_labels`` of the head; else labels that are texts tell it.
    """

    name: str
    data: str | Mapping[str, str] | None = None
    head: Head | None = None
    metrics: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    pair: Literal["joint", "separate"] = "joint"
    loss_weight: float = 1.0
    label_names: Sequence[str] | None = None
    max_length: int | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    limit: Mapping[str, int] = field(default_factory=dict)
    learning_rate: float | None = None
    weight_decay: float | None = None
    # left out of what tells settings apart, which knows it from `Recipe.regularizers`
    regularizer: Regularizer | None = field(default=None, repr=False)
    counts_labels: bool = field(default=False, repr=False, metadata={NO_KEY: True})


@dataclass(frozen=True)
class MixingSection:
    """How the tasks share the training steps.

    Args:
        strategy: The strategy object made from a name, or from a mapping with ``name`` and its options.
        batch: ``one_task`` or ``mixed``.
        batch_size: Rows a batch.
        epoch_steps: Steps that make one epoch; ``None`` takes as many as the data fill once.
        bucket_steps: The rows of up to this many steps are sorted by length together; 1 for random order.
    """

    strategy: MixingStrategy
    batch: Literal["one_task", "mixed"] = "one_task"
    batch_size: int = 32
    epoch_steps: int | None = None
    bucket_steps: int = 128


@dataclass(frozen=True)
class EarlyStoppingSection:
    """When a task of the adapted run has converged; its share then goes to the others.

    Args:
        patience: Evaluations in a row without improvement.
        threshold: By how much a score must be better than the best before.
        metrics: Task to the metric that decides, where that is not its first one; ``null`` for a task never to stop.
    """

    patience: int = 3
    threshold: float = 0.0
    metrics: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Among what one value of a recipe is searched.

    Args:
        kind: ``choice``, or between two bounds: ``range``, or ``log`` for evenly on a logarithmic scale.
        values: The choices, or the lower and the upper bound.
        whole: Whether whole numbers alone lie between the bounds.
    """

    kind: Literal["choice", "log", "range"]
    values: tuple[Any, ...]
    whole: bool = False


@dataclass(frozen=True)
class SearchSection:
    """A search over values of the recipe, before the run is trained with the best that it finds.

    Args:
        trials: How many times the adapted model is trained.
        space: Path of a value, as the command line writes it, to what it is searched among.
        metric: A result of evaluations on the validation split: ``macro``, ``TASK_METRIC`` or ``loss``.
        direction: ``maximize`` or ``minimize``; by default what the metric says.
    """

    trials: int
    space: Mapping[str, Spread]
    metric: str = "macro"
    direction: Literal["maximize", "minimize"] | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Args:
        model: A hub name, a folder, or ``package:NAME`` for a model that a Python package carries.
        tasks: At least one.
        method: The configs of the adaptation method, expanded from what the recipe names.
        mixing: How tasks share the steps.
        training: Fields of ``transformers.TrainingArguments``, by their own names.
        head_learning_rate: Of the heads, in every arm, where it differs from that of the rest.
        train_base: Train the base along with the deltas.
        adapter_drop: Redraw at every step how many of the lowest layers go without deltas, at most this many.
        early_stopping: When each task of the adapted run has converged; without it none stops before the run does.
        regularizer: Of the adapted run, for tasks without one of their own; baselines train without.
        baselines: Trained and shown beside the adapted model, each with the ``TrainingArguments`` fields that it sets
            for itself, and its own ``head_learning_rate``. Each gets the steps that the adapted run gave its tasks.
        score_split: Split of the final scores; ``validation`` while settings are being chosen.
        score_depths: Numbers of lowest layers without deltas with which the trained adapter is scored as well.
        search: Values that are searched, by their validation scores, before the run is trained with the best.
        output: Folder of the adapter, the report and the checkpoints.
        seed: Of data order, task draws and initialisation.
        source: The recipe's text, for the record.
        overrides: What ``--fast`` and the command line changed in it, in their order.
        resolved: The recipe as YAML with these changes made: the one that is run.
    """

    model: str
    tasks: tuple[TaskSection, ...]
    method: tuple[MethodConfig, ...]
    mixing: MixingSection
    training: Mapping[str, Any] = field(default_factory=dict)
    head_learning_rate: float | None = None
    train_base: bool = False
    adapter_drop: int | None = None
    early_stopping: EarlyStoppingSection | None = None
    regularizer: Regularizer | None = None
    baselines: Mapping[Baseline, Mapping[str, Any]] = field(default_factory=dict)
    score_split: Literal["test", "validation"] = "test"
    score_depths: tuple[int, ...] = ()
    search: SearchSection | None = None
    output: str = "runs/hfadapt"
    seed: int = 42
    source: str = ""
    overrides: tuple[str, ...] = ()
    resolved: str = ""

    @property
    def task_rates(self) -> dict[str, dict[str, float]]:
        """What ``hfadapt.task_optimizer`` takes of the tasks' own rates."""
        rates = {task.name: task.learning_rate for task in self.tasks if task.learning_rate is not None}
        decays = {task.name: task.weight_decay for task in self.tasks if task.weight_decay is not None}
        return {"learning_rates": rates, "weight_decays": decays}

    @property
    def regularizers(self) -> Regularizer | dict[str, Regularizer] | None:
        """What ``hfadapt.regularize`` takes: one for all tasks, one a task, or None."""
        if all(task.regularizer is None for task in self.tasks):
            return self.regularizer
        found = {task.name: task.regularizer or self.regularizer for task in self.tasks}
        return {name: one for name, one in found.items() if one is not None}
