"""AdapterFusion as an arm: eight adapters trained apart, then a fusion of all eight for each of the three tasks.

The bundled suite has three tasks. Five more are made of their rows: each label of wn_relation against the rest, and the
sign and the strength of tweet_valence. What is scored are the three.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt import Fuse, add_fusion, prune_fusion, record_fusion, set_adapter_drop
from hfadapt.data.mixing import MixingStrategy
from hfadapt.data.sources import load_splits
from hfadapt.multitask.heads import Classification
from hfadapt.training import RobustAdapterDrop, TaskMixture

if TYPE_CHECKING:
    from .arms import Arm

# A new task's name to the task whose rows it has, and which of them are its class 1.
DERIVED: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "wn_hypernym": ("wn_relation", lambda label: label == 0),
    "wn_cohyponym": ("wn_relation", lambda label: label == 1),
    "wn_neither": ("wn_relation", lambda label: label == 2),
    "valence_positive": ("tweet_valence", lambda label: label > 0),
    "valence_strong": ("tweet_valence", lambda label: abs(label) > 1.5),
}
# Of the fusion: half of the adapters' rate, as in Pfeiffer et al. 2021 (5e-5 and 1e-4).
LEARNING_RATE = 1e-3
# Training rows of a task over which is recorded which adapters its fusion uses.
RECORDED = 256
# No score of the derived tasks is read; a run wants test rows.
TESTED = 16


class Only(MixingStrategy):
    """All batches are of one task.

    Args:
        place: Of the task.
    """

    name = "only"

    def __init__(self, place: int) -> None:
        self.place = place

    def probabilities(self, sizes: Sequence[int], epoch: int, epochs: int) -> Any:
        """One for the task, and zero for the others."""
        return [float(place == self.place) for place in range(len(sizes))]


def eight_tasks(tasks: Sequence[Any]) -> list[Any]:
    """The three tasks and the five that are made of their rows."""
    by_name = {task.name: task for task in tasks}
    return [*tasks, *(_derived(name, by_name[of], test) for name, (of, test) in DERIVED.items())]


def _derived(name: str, task: Any, test: Callable[[float], bool]) -> Any:
    column, data = task.column("label"), {}
    for split, rows in load_splits(task).items():
        labels = [int(test(label)) for label in rows[column]]
        rows = rows.remove_columns(column).add_column(column, labels)
        data[split] = rows.select(range(min(TESTED, len(rows)))) if split == "test" else rows
    head = Classification(2, pooling=task.head.pooling)
    return dataclasses.replace(
        task, name=name, head=head, data=data, metrics=("accuracy",), label_names=None, splits={}
    )


def run_fusion(arm: Arm, run: Any) -> dict[str, Any]:
    """Train the eight adapters, and a fusion of them for each task; score it whole, dropped and pruned.

    Args:
        arm: Says how long, and whether the fusion is trained robustly.
        run: Of the arm's recipe, with the three tasks.

    Returns:
        What `run_arm` does, but the seconds.
    """
    targets = run.tasks
    run.tasks = eight_tasks(targets)
    adapters = run.train_adapted()
    found = [_one(arm, run, copy.deepcopy(adapters.model), place) for place in range(len(targets))]

    def macro(key: str, value: str) -> float:
        return sum(one[key][value] for one in found) / len(found)

    return {
        "macro": macro("whole", ""),
        "scores": {task.name: one["whole"][""] for task, one in zip(targets, found, strict=True)},
        "depths": {str(depth): macro("depths", str(depth)) for depth in arm.depths},
        "pruned": {str(keep): macro("pruned", str(keep)) for keep in arm.pruned},
        "kept": {task.name: one["kept"] for task, one in zip(targets, found, strict=True)},
        "trained": found[0]["trained"],
        "steps": adapters.result.steps + sum(one["steps"] for one in found),
    }


def _one(arm: Arm, run: Any, model: Any, place: int) -> dict[str, Any]:
    """A fusion for one task, trained with its own head, and its scores."""
    from torch.utils.data import Subset

    from hfadapt.recipes.arm import make_trainer, pack_frozen, score
    from hfadapt.recipes.build import training_arguments

    task, names = run.tasks[place], [task.name for task in run.tasks]
    mixture = TaskMixture(
        run.tasks,
        run.tokenizer,
        strategy=Only(place),
        batch="one_task",
        batch_size=run.recipe.mixing.batch_size,
        seed=run.recipe.seed,
        epoch_steps=arm.fusion_steps,
        cache_dir=run.output / "tokens" if run.output.is_dir() else None,
    )
    add_fusion(model, Fuse(*names), activate_it=False)
    model.use(task.name, Fuse(*names))
    for name, head in model.heads.items():
        head.requires_grad_(name == task.name)
    pack_frozen(model)
    changes = {"num_train_epochs": 1, "learning_rate": LEARNING_RATE}
    arguments = training_arguments(run.recipe, Path(run.output) / "fusion" / task.name, changes)
    trainer = make_trainer(
        model,
        mixture,
        arguments,
        callbacks=[RobustAdapterDrop()] if arm.robust_fusion else [],
        head_learning_rate=run.recipe.head_learning_rate,
    )
    trainer.train()

    def scored() -> float:
        return 100 * score(trainer, mixture.dataset("test", task.name, by_length=True), [task])[1]

    whole, depths, pruned = scored(), {}, {}
    for depth in arm.depths:
        set_adapter_drop(model.base, depth)
        depths[str(depth)] = scored()
    set_adapter_drop(model.base, 0)
    rows: Any = mixture.dataset("train", task.name)
    with record_fusion(model) as record:
        trainer.predict(Subset(rows, range(min(RECORDED, len(rows)))))
    kept: dict[str, list[str]] = {}
    for keep in sorted(arm.pruned, reverse=True):
        layers = prune_fusion(model.base, record, keep=keep)
        pruned[str(keep)] = scored()
        kept[str(keep)] = [" and ".join(names) for names in layers.values()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "whole": {"": whole},
        "depths": depths,
        "pruned": pruned,
        "kept": kept,
        "trained": trained,
        "steps": trainer.state.global_step,
    }
