"""What the parts of a run know of it; ``recipes/run.py``, which uses them, is the run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from ..multitask.task import Task
    from ..training import TaskMixture
    from .config import Recipe

__all__ = ["Running"]


class Running(Protocol):
    """A run; ``Run`` says what its members are."""

    recipe: Recipe
    output: Path
    config: Any
    tasks: list[Task]
    arguments: TrainingArguments
    say: Callable[[str], None]

    @property
    def mixture(self) -> TaskMixture: ...

    @functools.cached_property
    def scored(self) -> dict[str, list[str]]: ...

    def with_recipe(self, recipe: Recipe) -> Running: ...

    def build_model(self) -> PreTrainedModel: ...

    def callbacks_for(self, model: PreTrainedModel) -> list[Any]: ...
