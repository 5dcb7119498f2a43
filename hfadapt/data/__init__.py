"""Data of several tasks: where rows come from, how tasks are mixed, and what a batch looks like."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import bundled
    from .collator import MultiTaskCollator
    from .glue import GLUE, glue_task, glue_tasks
    from .mixing import MixingStrategy, make_strategy, power_probabilities
    from .mixture import TaskMixture
    from .preview import Preview
    from .rows import MixtureDataset, SplitDataset
    from .schedule import Layout, Schedule
    from .sources import load_splits, read_file
    from .tokens import TokenTable, tokenize

# data sets and torch are imported on first use of a name, so that listing strategies stays cheap
_HOMES = {
    "MultiTaskCollator": "collator",
    "GLUE": "glue",
    "glue_task": "glue",
    "glue_tasks": "glue",
    "MixingStrategy": "mixing",
    "make_strategy": "mixing",
    "power_probabilities": "mixing",
    "MixtureDataset": "rows",
    "SplitDataset": "rows",
    "TaskMixture": "mixture",
    "Preview": "preview",
    "Layout": "schedule",
    "Schedule": "schedule",
    "load_splits": "sources",
    "read_file": "sources",
    "TokenTable": "tokens",
    "tokenize": "tokens",
}

__all__ = [
    "GLUE",
    "Layout",
    "MixingStrategy",
    "MixtureDataset",
    "MultiTaskCollator",
    "Preview",
    "Schedule",
    "SplitDataset",
    "TaskMixture",
    "TokenTable",
    "bundled",
    "glue_task",
    "glue_tasks",
    "load_splits",
    "make_strategy",
    "power_probabilities",
    "read_file",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name == "bundled":  # the one module among the names: data sets by name
        return importlib.import_module(".bundled", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
