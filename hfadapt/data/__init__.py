"""Data of several tasks: where rows come from, how they are tokenised, and what a batch looks like."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors.first_use import on_first_use

if TYPE_CHECKING:
    from .collator import MultiTaskCollator as MultiTaskCollator
    from .datasets import MixtureDataset as MixtureDataset
    from .datasets import SplitDataset as SplitDataset
    from .glue import GLUE as GLUE
    from .glue import glue_task as glue_task
    from .glue import glue_tasks as glue_tasks
    from .mixing import MixingStrategy as MixingStrategy
    from .mixing import UniformStream as UniformStream
    from .mixing import make_strategy as make_strategy
    from .mixing import power_probabilities as power_probabilities
    from .preview import Preview as Preview
    from .schedule import Layout as Layout
    from .schedule import Schedule as Schedule
    from .sources import load_splits as load_splits
    from .sources import read_file as read_file
    from .tokens import TokenTable as TokenTable
    from .tokens import tokenize as tokenize

# data sets and torch are imported on first use of a name, so that listing strategies stays cheap
_HOMES = {
    "MultiTaskCollator": ".collator",
    "MixtureDataset": ".datasets",
    "SplitDataset": ".datasets",
    "GLUE": ".glue",
    "glue_task": ".glue",
    "glue_tasks": ".glue",
    "MixingStrategy": ".mixing",
    "UniformStream": ".mixing",
    "make_strategy": ".mixing",
    "power_probabilities": ".mixing",
    "Preview": ".preview",
    "Layout": ".schedule",
    "Schedule": ".schedule",
    "load_splits": ".sources",
    "read_file": ".sources",
    "TokenTable": ".tokens",
    "tokenize": ".tokens",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
_load = on_first_use(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "bundled":  # the one module among the names: data sets by name
        return importlib.import_module(".bundled", __name__)
    if name == "TaskMixture":
        raise AttributeError(f"{__name__}.TaskMixture stands in hfadapt.training; try: from hfadapt import TaskMixture")
    return _load(name)
