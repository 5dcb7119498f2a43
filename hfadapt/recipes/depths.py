"""Scores of a trained adapter whose lowest layers run without deltas (AdapterDrop, Rücklé et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .config.place import place_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .results import ArmResult
    from .running import Running

__all__ = ["require_depths", "score_depths"]


def require_depths(run: Running) -> None:
    """Refuse depths at or past the number of layers: nothing of the adapter would be left, before anything trains.

    Raises:
        ConfigError: there is such a depth.
    """
    if not run.recipe.score_depths:
        return
    import torch
    from transformers import AutoModel

    from ..architecture.resolve import resolve

    with torch.device("meta"):
        layers = max(resolve(AutoModel.from_config(run.config)).depths.values(), default=0)
    deep = [depth for depth in run.recipe.score_depths if depth >= layers]
    if deep:
        raise ConfigError(
            "a depth without deltas leaves no layer of the adapter",
            where=place_in(run.recipe, "score_depths"),
            got=", ".join(map(str, deep)),
            allowed=f"0 to {layers - 1}, of the {layers} layers of {run.recipe.model}",
            try_=f"score_depths: [{', '.join(str(depth) for depth in run.recipe.score_depths if depth < layers) or 0}]",
        )


def score_depths(run: Running, model: PreTrainedModel, adapted: ArmResult) -> dict[str, Any]:
    """Score the trained model with that many of its lowest layers without deltas; the model comes back with all.

    Args:
        run: Whose recipe names the depths; whose splits are scored.
        model: The trained one.
        adapted: Its result, which is depth 0.

    Returns:
        The number of layers, as a text, to ``{"scores": {task: {metric: value}}, "macro": value}``; depth 0 is among
        them. Without depths in the recipe, nothing.
    """
    from transformers import Trainer

    from .. import set_adapter_drop
    from .arm import macro_average, score

    if not run.recipe.score_depths:
        return {}
    mixture: Any = run.mixture
    base: Any = getattr(model, "base", model)
    trainer = Trainer(
        model=model,
        args=run.arguments,
        eval_dataset=mixture.eval,
        data_collator=mixture.collator,
        compute_metrics=mixture.metrics,
    )
    found: dict[str, Any] = {"0": {"scores": adapted.scores, "macro": adapted.macro}}
    try:
        for depth in run.recipe.score_depths:
            if depth == 0:
                continue
            run.say(f"Scoring without the deltas of the lowest {depth} layer{'s' if depth > 1 else ''}")
            set_adapter_drop(base, depth)
            scores: dict[str, dict[str, float]] = {}
            for split, names in run.scored.items():
                tasks = [task for task in run.tasks if task.name in names]
                scores.update(score(trainer, mixture.dataset(split, names, by_length=True), tasks)[0])
            found[str(depth)] = {"scores": scores, "macro": macro_average(scores, run.tasks)}
    finally:
        set_adapter_drop(base, None)
    return found
