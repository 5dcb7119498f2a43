"""What a plain Trainer needs for several tasks: callbacks, corpus metrics, resuming."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callbacks import EpochSync, IdleTaskGuard, RobustAdapterDrop
    from .macro import Macro, macro_of
    from .metrics import METRICS, Metric, RegisteredMetric, Scored, find_metric, register_metric
    from .multitask import MultiTaskMetrics
    from .resume import last_checkpoint

# callbacks import transformers' trainer, which takes seconds: names are resolved on first use
_HOMES = {
    "EpochSync": "callbacks",
    "IdleTaskGuard": "callbacks",
    "RobustAdapterDrop": "callbacks",
    "METRICS": "metrics",
    "Macro": "macro",
    "macro_of": "macro",
    "Metric": "metrics",
    "RegisteredMetric": "metrics",
    "find_metric": "metrics",
    "Scored": "metrics",
    "register_metric": "metrics",
    "MultiTaskMetrics": "multitask",
    "last_checkpoint": "resume",
}

__all__ = [
    "METRICS",
    "EpochSync",
    "IdleTaskGuard",
    "Macro",
    "Metric",
    "MultiTaskMetrics",
    "RegisteredMetric",
    "RobustAdapterDrop",
    "Scored",
    "find_metric",
    "last_checkpoint",
    "macro_of",
    "register_metric",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
