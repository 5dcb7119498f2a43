"""Changing the tasks of a ``MultiTaskModel`` on a copy beside it, and putting what came out in its place at once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from ..adapters.beside import beside, forget, shallow
from ..runtime.attachment import find_attachment
from ..runtime.packing import unpack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from transformers import PreTrainedModel

    from .model import MultiTaskModel

__all__ = ["forget_tasks", "model_beside", "take_over"]


def model_beside(model: MultiTaskModel) -> MultiTaskModel:
    """Return a copy of a model on the same tensors, with the same tasks, to which others can be added.

    Raises:
        CheckpointError: see ``hfadapt.adapters.beside``.
    """
    twin = shallow(model)
    twin.base, twin.heads = beside(model.base), shallow(model.heads)
    twin.routes, twin.config = dict(model.routes), copy.copy(model.config)
    if (state := find_attachment(twin.base)) is not None:
        twin.__dict__["_hfadapt"] = state
    return twin


def take_over(model: MultiTaskModel, twin: MultiTaskModel) -> None:
    """Give a model what `model_beside` and changes of it made. Nothing is computed, read or copied.

    Args:
        model: No call of it may be running.
        twin: Not to be used any more.
    """
    model.base, model.heads = twin.base, twin.heads
    model.tasks, model.ids, model.routes = twin.tasks, twin.ids, twin.routes
    model.config.tasks = twin.config.tasks
    if "_hfadapt" in twin.__dict__:
        model.__dict__["_hfadapt"] = twin.__dict__["_hfadapt"]


def forget_tasks(base: PreTrainedModel, heads: nn.ModuleDict, names: Iterable[str]) -> None:
    """Let go of the weights of tasks that are gone; see ``forget`` of ``hfadapt/adapters/beside.py``.

    Args:
        base: Of a model before `take_over`.
        heads: Of the same.
        names: Tasks that the model has no longer.
    """
    gone = [*names]
    forget(base, gone)
    for name in gone:
        if name in heads:
            unpack(heads[name])
            del heads[name]
