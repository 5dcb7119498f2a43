"""What a Trainer resumes on a ``MultiTaskModel``: the same tasks, heads and adapters, in their order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..adapters.resume import record_of, refused, require_names, require_same_adapters, resumed_folder
from .task import Task

__all__ = ["require_same_tasks"]


def require_same_tasks(base: nn.Module, own: Sequence[Task], train_base: bool) -> None:
    """Where a Trainer is resuming, refuse a checkpoint of other tasks or adapters, or of another order.

    Args:
        base: The base of the model, with its adapters.
        own: The tasks of the model.
        train_base: Whether the model trains its base.

    Raises:
        CheckpointError: names, order, kinds of heads or methods differ, or the folder's record cannot be read.
    """
    folder = resumed_folder()
    record = record_of(folder)
    if folder is None or record is None:
        return
    saved = record.get("multi_task")
    if not isinstance(saved, dict):
        names = ", ".join(task.name for task in own)
        raise refused(folder, "the checkpoint is of adapters alone", "no tasks", names)
    tasks = {str(task["name"]): _kind(task.get("head")) for task in saved.get("tasks", ())}
    here = {task.name: _kind(json.loads(json.dumps(task.head.to_dict()))) for task in own}
    require_names("tasks", tuple(tasks), tuple(here), folder)
    others = [name for name in here if here[name] != tasks[name]]
    if others:
        raise refused(
            folder,
            "the checkpoint is of tasks with other heads",
            ", ".join(f"{name}: {_shown(tasks[name])}" for name in others),
            ", ".join(f"{name}: {_shown(here[name])}" for name in others),
        )
    if bool(saved.get("train_base")) != train_base:
        raise refused(
            folder,
            "the checkpoint is of another way of training",
            f"train_base={bool(saved.get('train_base'))}",
            f"train_base={train_base}",
        )
    require_same_adapters(base, record, folder)


def _kind(head: Any) -> tuple[tuple[str, Any], ...]:
    """What decides a head's parameters and loss: its kind and its number of outputs."""
    fields = head if isinstance(head, Mapping) else {}
    return tuple((key, fields[key]) for key in ("kind", "num_labels", "labels") if key in fields)


def _shown(kind: Iterable[tuple[str, Any]]) -> str:
    return " ".join(str(value) for _, value in kind)
