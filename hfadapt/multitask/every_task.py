"""Every task on one input: what lies below the lowest delta runs once, and each task's own head answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters.folder_config import MultiTaskOutput
from ..routing.growth import Reach
from ..routing.task_ids import Together
from .heads import HeadFeatures
from .heads.run import run_heads

if TYPE_CHECKING:
    from .model import MultiTaskModel

__all__ = ["run_every_task"]


def run_every_task(
    model: MultiTaskModel,
    inputs: Mapping[str, Tensor],
    places: Sequence[int],
    reaches: Sequence[Reach],
    trunk: dict[tuple[str, int], Any] | None = None,
) -> MultiTaskOutput:
    """Return what ``model(**inputs, task_ids=...)`` returns of inputs that stand there once for each of B tasks.

    Args:
        model: In evaluation mode, with the hooks of `put_growth` on its base.
        inputs: Of one row, ``[1, T]``, with the names that the model's ``forward`` has.
        places: The place of the task of each row among the model's tasks.
        reaches: Where the deltas of each row are; see `reaches_of`.
        trunk: Kept from one call on the same input to the next, layers below all deltas run in the first one only.
    """
    given: dict[str, Any] = {"pair_input_ids": None, "pair_attention_mask": None, **inputs}
    pair, pair_mask = given.pop("pair_input_ids"), given.pop("pair_attention_mask")
    device = next(iter(inputs.values())).device
    rows = Together(None, torch.tensor(places, device=device), tuple(places), tuple(reaches), trunk)
    ids, size = rows.tensor(len(places), device), len(places)
    if model._own_head:
        return model._run_own_head(given, rows, ids, None)

    def encoded(what: dict[str, Any], rows: Together) -> tuple[Tensor, Tensor | None]:
        hidden, pooler = model._encode(what, rows, ids, {})
        # Tasks that have a head alone share all of the base.
        return _rows(hidden, size), None if pooler is None else _rows(pooler, size)

    hidden, pooler = encoded(given, rows)
    mask = given.get("attention_mask")
    mask = _rows(mask, size) if mask is not None and mask.shape[1:] == hidden.shape[1:2] else None
    features = HeadFeatures(hidden, mask, pooler)
    if pair is not None:
        # Another text: what the layers gave for the first one is not its.
        own = Together(None, rows.ids, rows.listed, rows.reaches)
        second, second_pooler = encoded({"input_ids": pair, "attention_mask": pair_mask}, own)
        other = None if pair_mask is None else _rows(pair_mask, size)
        features = HeadFeatures(hidden, mask, pooler, second, other, second_pooler)
    _, logits = run_heads(model.tasks, model.heads, features, ids, rows.present, None)
    return MultiTaskOutput(loss=None, logits=logits, task_ids=model.ids_of(ids))


def _rows(tensor: Tensor, size: int) -> Tensor:
    return tensor if tensor.shape[0] == size else tensor.expand(size, *tensor.shape[1:])
