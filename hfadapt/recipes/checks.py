"""What is checked after training: the saved folder reloads bit for bit, and a mixed batch equals each task alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..architecture.modes import evaluating
from ..errors import CheckpointError, RoutingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..training import TaskMixture

__all__ = ["check_mixed_batch", "check_reload", "require_proof"]

#: Of the largest logit: what another order of sums may change.
ROUNDING = 1e-3

Batch = dict[str, Any]


def check_reload(
    model: PreTrainedModel,
    folder: Path,
    load: Callable[[Path], PreTrainedModel],
    mixture: TaskMixture,
    *,
    split: str = "test",
    rows: int = 32,
) -> dict[str, Any]:
    """Load a saved adapter folder into a fresh base and compare its logits with the trained model's, bit for bit.

    Args:
        model: The trained model.
        folder: Where it was saved.
        load: Makes the fresh model from the folder.
        mixture: Whose rows are predicted.
        split: Falls back to validation.
        rows: Of each task.
    """
    fresh = load(folder)
    batches = [_batch(mixture, [task.name], split, rows) for task in mixture.tasks]
    same, compared = True, 0
    for batch in batches:
        before, after = _logits(model, batch), _logits(fresh, batch)
        same = same and before.dtype == after.dtype and torch.equal(before, after)
        compared += before.numel()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {
        "folder": str(folder),
        "bit_identical": same,
        "logits_compared": compared,
        "bytes": {path.name: path.stat().st_size for path in files},
    }


def check_mixed_batch(
    model: PreTrainedModel, mixture: TaskMixture, *, split: str = "test", rows: int = 8
) -> dict[str, Any]:
    """Predict one batch with rows of every task in a single forward, and each task's rows alone.

    The rows of one task alone have fewer neighbours, so matrix products may sum in another order: the largest
    difference is reported beside whether the predictions agree.

    Args:
        model: The trained model.
        mixture: Whose rows are predicted.
        split: Falls back to validation.
        rows: Of each task.
    """
    names = [task.name for task in mixture.tasks]
    batch = _batch(mixture, names, split, rows, interleave=True)
    mixed = _logits(model, batch)
    task_ids = torch.as_tensor(batch["task_ids"])
    worst, agree, scale = torch.zeros(()), True, torch.zeros(())
    for index, task in enumerate(mixture.tasks):
        here = task_ids == index
        alone = _logits(model, {key: value[here] for key, value in batch.items()})
        width = task.head.num_outputs
        a, b = mixed[here][:, :width], alone[:, :width]
        # of tensors, so that NaN stays: the larger of 0 and NaN is 0 in Python
        worst, scale = torch.maximum(worst, (a - b).abs().max()), torch.maximum(scale, b.abs().max())
        agree = agree and bool(torch.equal(a.argmax(1), b.argmax(1)) if width > 1 else torch.allclose(a, b, atol=1e-5))
    # two classes may be level to the last digits: then the order of sums decides, and neither answer is wrong
    rounding = bool(worst <= ROUNDING * scale.clamp_min(1.0))
    return {
        "rows": len(task_ids),
        "tasks": len(names),
        "largest_difference": float(worst),
        "predictions_equal": agree,
        "within_rounding": rounding,
    }


def require_proof(proof: Mapping[str, Any]) -> None:
    """End a run whose checks failed; what was trained and reported stays where it is.

    Raises:
        CheckpointError: the saved folder does not reload as the trained model, or logits are NaN.
        RoutingError: rows answer otherwise in a mixed batch than alone.
    """
    reload, mixed = proof["reload"], proof["mixed_batch"]
    if not reload["bit_identical"] or not reload["logits_compared"]:
        raise CheckpointError(
            "the saved adapter is NOT IDENTICAL to the trained model",
            where=str(reload["folder"]),
            got=f"other logits, or NaN, among {reload['logits_compared']:,} after loading it into a fresh base",
            allowed="the same logits to the last bit",
            try_="do not use this folder; look for NaN in the training losses, or train without plugins",
        )
    if not mixed.get("within_rounding", mixed["predictions_equal"]):
        raise RoutingError(
            "predictions in a mixed batch are DIFFERENT from each task alone",
            where=f"{mixed['rows']} rows of {mixed['tasks']} tasks",
            got=f"a logit that differs by {mixed['largest_difference']:.1e}",
            allowed=f"{ROUNDING:g} of the largest logit",
            try_="a method of a plugin may mix rows: hfadapt.verify names it",
        )


def _batch(mixture: TaskMixture, tasks: Sequence[str], split: str, rows: int, interleave: bool = False) -> Batch:
    columns = [[*_first(mixture, task, split, rows)] for task in tasks]
    if interleave:
        short = min(len(column) for column in columns)
        items = [column[i] for i in range(short) for column in columns]
    else:
        items = [item for column in columns for item in column]
    batch = dict(mixture.collator(items))
    return {key: value for key, value in batch.items() if isinstance(value, Tensor) and key != "labels"}


def _first(mixture: TaskMixture, task: str, split: str, rows: int) -> list[dict[str, Any]]:
    index = [one.name for one in mixture.tasks].index(task)
    there = next(one for one in (split, "validation", "train") if mixture.rows_of(index, one))
    data = mixture.dataset(there, [task])
    return [data[i] for i in range(min(rows, len(data)))]


@torch.no_grad()
def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    with evaluating(model):
        out = model(**{key: value.to(device) for key, value in batch.items()}).logits
    return out.detach().cpu()
