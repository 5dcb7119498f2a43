"""The plan of a run, before anything is trained: tasks, schedule, memory, the first batch in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arm import count_parameters
from .pace import Pace, available_bytes, grown, measure_pace, shallow_models
from .preflight import Disk, estimate_disk, require_room

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from ..training import TaskMixture
    from .run import Run

__all__ = ["Memory", "decode_batch", "estimate_memory", "plan_of"]

ADAM_BYTES = 8
"""AdamW keeps two float32 numbers for each trained parameter."""

_FLOAT = 4


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs, estimated.

    Args:
        weights: All parameters.
        gradients: One number for each trained parameter.
        optimizer: AdamW's two moments.
        activations: What back-propagation keeps, for a batch of the longest rows.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(model: nn.Module, rows: int, tokens: int) -> Memory:
    """Estimate the memory of a training step.

    Activations follow Korthikanti et al. 2022 (arXiv:2205.05198, eq. 2) without dropout masks, for numbers of 4 bytes:
    each layer keeps about ``T B D (16 + 2 H T / D)`` numbers, which is right within a factor of two
    (``tests/unit/test_memory_estimate.py``). A frozen base keeps as many, since gradients still flow
    through it to the deltas below.

    Args:
        model: With its config's ``hidden_size``, ``num_hidden_layers`` and ``num_attention_heads``.
        rows: B.
        tokens: T, of the longest row; of both texts together where each is encoded alone, which errs upwards.
    """
    parameters = {id(p): p for p in model.parameters()}.values()
    trained = [p for p in parameters if p.requires_grad]
    config: Any = getattr(model, "base_model", model).config
    config = config.get_text_config()
    width, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    kept = layers * tokens * rows * (16 * width + 2 * heads * tokens)
    return Memory(
        weights=sum(p.numel() * p.element_size() for p in parameters),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        optimizer=sum(p.numel() * ADAM_BYTES for p in trained),
        activations=kept * 4 if trained else 0,
    )


def decode_batch(mixture: TaskMixture, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The first training batch, as the model will read it: its shapes, and every row in words."""
    items: Sequence[Any] = [
        mixture.train[i] for i in range(min(mixture.schedule.layout.batch_size, len(mixture.train)))
    ]
    names = [task.name for task in mixture.tasks]
    decoded = []
    for item in items:
        row = {"task": names[int(item["task_ids"])], "text": tokenizer.decode(item["input_ids"])}
        if item.get("pair_input_ids") is not None:
            row["text_pair"] = tokenizer.decode(item["pair_input_ids"])
        labels = item.get("labels")
        row["label"] = labels.tolist() if hasattr(labels, "tolist") else labels
        decoded.append(row)
    shapes = {name: list(tensor.shape) for name, tensor in mixture.collator(items).items()}
    return {"shapes": shapes, "rows": decoded}


def plan_of(run: Run) -> dict[str, Any]:
    """The plan of a run as data: sizes, memory, disk, time, schedule, first batch. Nothing is written.

    The time is that of a few updates which are made and thrown away.

    Raises:
        DataError: a task has no labelled rows to score it on.
        ConfigError: the disk is too full.
    """
    scored = run.scored
    longest = int(max(lengths.sum(1).max() for lengths in run.mixture.schedule.lengths or ()))
    preview, first_batch = run.mixture.preview(), decode_batch(run.mixture, run.tokenizer)
    needs = _needs(run, longest)
    memory, disk, pace = needs.memory, needs.disk, needs.pace
    base, total = run.base_parameters, needs.parameters
    steps = preview.schedule.steps * run.epochs
    return {
        "model": run.recipe.model,
        "base_parameters": base,
        "added_parameters": total - base,
        "trained_parameters": needs.trained,
        "multiple_of_base": total / base,
        "steps": steps,
        "seconds": {"update": pace.update, "training": pace.update * steps, "updates_timed": pace.updates},
        "fits_in_memory": needs.fits,
        "longest_row_tokens": longest,
        "memory_bytes": {**dataclasses.asdict(memory), "total": memory.total},
        "disk_bytes": {**dataclasses.asdict(disk), "total": disk.total},
        "scored": scored,
        "notes": [*run.stand_ins, *_asked(run), *needs.notes],
        "schedule": preview.to_dict(),
        "first_batch": first_batch,
    }


@dataclass(frozen=True)
class _Needs:
    """What a run needs of a machine."""

    memory: Memory
    disk: Disk
    pace: Pace
    parameters: int
    trained: int
    fits: bool
    notes: tuple[str, ...]


def _needs(run: Run, longest: int) -> _Needs:
    """Ask of the model itself, or of its first layers where the base alone is more than memory has room for."""
    room = available_bytes()
    whole = run.base_parameters * _FLOAT < room
    models = (run.build_model(),) if whole else shallow_models(run)
    rows, layers = run.recipe.mixing.batch_size, run.config.get_text_config().num_hidden_layers

    def of(one: Any) -> Any:
        return one(models[0]) if whole else grown([one(model) for model in models], layers)

    def each(kind: Any, estimate: Any) -> Any:
        parts = [dataclasses.asdict(estimate(model)) for model in models]
        if whole:
            return kind(**parts[0])
        return kind(**{name: grown([part[name] for part in parts], layers) for name in parts[0]})

    memory = each(Memory, lambda model: estimate_memory(model, rows, longest))
    disk = each(Disk, lambda model: estimate_disk(run, model))
    require_room(run, disk)
    parameters = of(count_parameters)
    trained = of(lambda model: sum(p.numel() for p in model.parameters() if p.requires_grad))
    # last, for it trains them
    paces = [measure_pace(run, model) for model in models]
    pace = paces[0] if whole else Pace(grown([one.update for one in paces], layers), paces[0].updates)
    notes = []
    if memory.total > room:
        notes.append(f"the memory has room for {room / 2**30:,.1f} GiB; training needs {memory.total / 2**30:,.1f}")
    if not whole:
        notes.append(f"measured on the first layer and the first two of {layers}, with random weights")
    return _Needs(memory, disk, pace, parameters, trained, memory.total <= room, tuple(notes))


def _asked(run: Run) -> list[str]:
    """A line for the search and one for the depths, where the recipe asks for them."""
    search, depths = run.recipe.search, run.recipe.score_depths
    lines = []
    if search is not None:
        lines.append(
            f"search: {search.trials} trials over {', '.join(search.space)}, by {search.metric} on validation; then "
            "the run with the best"
        )
    if depths:
        lines.append(f"scored also without the deltas of the lowest {', '.join(map(str, depths))} layers")
    return lines
