"""The plan of a run, before anything is trained: tasks, schedule, memory, the first batch in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arm import count_parameters
from .preflight import require_room

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from ..training import TaskMixture
    from .run import Run

__all__ = ["Memory", "decode_batch", "estimate_memory", "plan_of"]

ADAM_BYTES = 8
"""AdamW keeps two float32 numbers for each trained parameter."""


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
    """The plan of a run as data: sizes, memory, disk, schedule, first batch. Nothing is trained or written.

    Raises:
        DataError: a task has no labelled rows to score it on.
        ConfigError: the disk is too full.
    """
    scored = run.scored
    model = run.build_model()
    disk = require_room(run, model)
    longest = int(max(lengths.sum(1).max() for lengths in run.mixture.schedule.lengths or ()))
    memory = estimate_memory(model, run.recipe.mixing.batch_size, longest)
    preview = run.mixture.preview()
    base, total = run.base_parameters, count_parameters(model)
    return {
        "model": run.recipe.model,
        "base_parameters": base,
        "added_parameters": total - base,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "multiple_of_base": total / base,
        "steps": preview.schedule.steps * run.epochs,
        "longest_row_tokens": longest,
        "memory_bytes": {**dataclasses.asdict(memory), "total": memory.total},
        "disk_bytes": {**dataclasses.asdict(disk), "total": disk.total},
        "scored": scored,
        "notes": [*run.stand_ins, *_asked(run)],
        "schedule": preview.to_dict(),
        "first_batch": decode_batch(run.mixture, run.tokenizer),
    }


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
