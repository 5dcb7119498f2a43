"""What a change of the tasks makes beside those that are served, and what rows need to know of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .answers import readable
from .batches import PaddedCollator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..multitask.model import MultiTaskModel
    from ..multitask.task import Task
    from .folders import Source

__all__ = ["Change", "Served", "served_tasks"]


@dataclasses.dataclass
class Change:
    """Tasks that are to be served, as they come about beside those that are.

    Args:
        model: A copy of the engine's, on the same tensors.
        inner: What the tasks are called here, each with its name in the model.
        sources: Where they came from.
    """

    model: MultiTaskModel
    inner: dict[str, str]
    sources: dict[str, Source]


@dataclasses.dataclass(frozen=True)
class Served:
    """What rows need to know of the tasks beside the model.

    Args:
        inner: What the tasks are called here, each with its name in the model.
        named: The tasks, under the names that they have here.
        collates: Puts their rows together.
    """

    inner: dict[str, str]
    named: tuple[Task, ...]
    collates: PaddedCollator


def served_tasks(
    model: MultiTaskModel, inner: dict[str, str], tokenizer: PreTrainedTokenizerBase, limit: int
) -> Served:
    """Return what rows need to know of a model's tasks.

    Args:
        model: With the tasks.
        inner: What they are called by those who ask, each with its name in the model.
        tokenizer: Of the base.
        limit: What the model reads at most.
    """
    outer = {name: task for task, name in inner.items()}
    named = tuple(
        task if outer[task.name] == task.name else dataclasses.replace(task, name=outer[task.name])
        for task in model.tasks
    )
    heads = [(readable(task, model) or task).head for task in model.tasks]
    return Served(inner, named, PaddedCollator([head.label_place for head in heads], tokenizer, limit))
