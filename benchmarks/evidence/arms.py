"""The arms of the evidence: a recipe each, and what one seed of it scores."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .noise import noisy_task

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Arm:
    """One way to solve the tasks.

    Args:
        name: ``paper.what``.
        changes: Of the common recipe, as on the command line.
        heads_alone: Whether there is no adapter, but the heads.
        depths: Numbers of lowest layers without adapters to score it with as well.
        noise: Shares of the test texts' words, in per cent, that are replaced to score it with as well.
        fusion_steps: Of a fusion over eight adapters (see `run_fusion`); 0 for no fusion.
        robust_fusion: Whether the fusion is trained with layers dropped.
        pruned: Numbers of adapters to which the fusion is pruned to score it with as well.
    """

    name: str
    changes: tuple[str, ...]
    heads_alone: bool = False
    depths: tuple[int, ...] = ()
    noise: tuple[int, ...] = ()
    fusion_steps: int = 0
    robust_fusion: bool = False
    pruned: tuple[int, ...] = ()

    def key(self, text: str) -> str:
        """A digest of all that decides its scores but the seed; ``text`` is the common recipe."""
        said = [text, self.changes, self.heads_alone, self.depths, *([self.noise] if self.noise else [])]
        if self.fusion_steps:
            said.append([self.fusion_steps, self.robust_fusion, self.pruned])
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def size(self, text: str) -> str:
        """How much it trains and is scored on, in words."""
        from hfadapt.recipes.config import read_recipe

        recipe = read_recipe(text, self.changes)
        steps = recipe.training["num_train_epochs"] * (recipe.mixing.epoch_steps or 0)
        (tested,) = {task.limit["test"] for task in recipe.tasks}
        fused = f", then {self.fusion_steps} for each of three fusions" if self.fusion_steps else ""
        return f"{steps:g} steps of {recipe.mixing.batch_size} rows{fused}, scored on {tested} test rows a task"


def read_arms(place: Path = HERE / "arms.yaml") -> dict[str, Arm]:
    """The arms of a file, each with what it takes from those that it begins with."""
    given: Mapping[str, Mapping[str, Any]] = yaml.safe_load(place.read_text("utf-8"))

    def changes(name: str) -> list[str]:
        own = given[name]
        return [change for base in own.get("base", ()) for change in changes(base)] + list(own.get("changes", ()))

    return {
        name: Arm(
            name,
            tuple(changes(name)),
            own.get("train") == "heads",
            tuple(own.get("depths", ())),
            tuple(own.get("noise", ())),
            own.get("fusion", {}).get("steps", 0),
            own.get("fusion", {}).get("robust", False),
            tuple(own.get("fusion", {}).get("pruned", ())),
        )
        for name, own in given.items()
    }


def read_arm(given: Mapping[str, Any]) -> Arm:
    """An arm out of its fields as JSON has them, where tuples are lists."""
    fields: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}
    return Arm(**fields)


def run_arm(arm: Arm, text: str, seed: int, output: str) -> dict[str, Any]:
    """Train an arm with one seed and score it on the test splits.

    Args:
        arm: What to train.
        text: The common recipe.
        seed: Of the training.
        output: Folder for what the run writes.

    Returns:
        ``macro`` and ``scores`` (task to its metric), in per cent; ``depths`` (layers dropped to macro) and
        ``noise`` (per cent of words replaced to macro), of a fusion ``pruned`` (adapters a layer to macro) and
        ``kept`` (which, by task and layer); ``trained`` parameters; ``steps``; ``seconds``.
    """
    import hfadapt
    from hfadapt.recipes.arm import score
    from hfadapt.recipes.config import read_recipe
    from hfadapt.recipes.run import Run

    start = time.perf_counter()
    changes = (*arm.changes, f"seed={seed}", f"output={output}")
    run = Run(read_recipe(text, changes, source=arm.name), lambda line: None)
    if arm.fusion_steps:
        from .fusion import run_fusion

        return {**run_fusion(arm, run), "seconds": round(time.perf_counter() - start, 1)}
    trained = _train_heads(run) if arm.heads_alone else run.train_adapted()
    result = trained.result
    model: Any = trained.model
    scorer = _scorer(run, model)
    depths = {}
    for depth in arm.depths:
        hfadapt.set_adapter_drop(model.base, depth)
        depths[str(depth)] = 100 * score(scorer, run.mixture.dataset("test", by_length=True), run.tasks)[1]
    noise = {str(percent): _with_noise(run, scorer, percent) for percent in arm.noise}
    firsts = {task.name: 100 * result.scores[task.name][task.metrics[0]] for task in run.tasks}
    return {
        "macro": 100 * result.macro,
        "scores": firsts,
        **({"depths": depths} if depths else {}),
        **({"noise": noise} if noise else {}),
        "trained": result.trained,
        "steps": result.steps,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _train_heads(run: Any) -> Any:
    """Train the base, or the heads alone over a frozen one, as a run trains what it adapts."""
    from hfadapt.recipes.arm import train_arm

    recipe = run.recipe
    return train_arm(
        "heads",
        "heads alone",
        run.build_model(adapted=False),
        run.mixture,
        run.arguments,
        base_parameters=run.base_parameters,
        head_learning_rate=recipe.head_learning_rate,
        task_rates=recipe.task_rates,
        regularizer=recipe.regularizers,
        split=recipe.score_split,
    )


def _with_noise(run: Any, scorer: Any, percent: int) -> float:
    """The macro average on test texts with noise, tokenised anew and kept nowhere."""
    from hfadapt.recipes.arm import score
    from hfadapt.recipes.build import build_mixture

    tasks = [noisy_task(task, percent / 100) for task in run.tasks]
    rows = build_mixture(run.recipe, tasks, run.tokenizer).dataset("test", by_length=True)
    return 100 * score(scorer, rows, tasks)[1]


def _scorer(run: Any, model: Any) -> Any:
    from transformers import Trainer

    mixture = run.mixture
    return Trainer(
        model=model,
        args=run.arguments,
        eval_dataset=mixture.eval,
        data_collator=mixture.collator,
        compute_metrics=mixture.metrics,
    )
