"""Recipes and their runs: what ``hfadapt train`` does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model_source import model_path as model_path
    from .results import ArmResult as ArmResult
    from .results import RunResult as RunResult

# names are loaded on first use: reading a recipe needs no torch
_HOMES = {
    "ArmResult": ".results",
    "RunResult": ".results",
    "model_path": ".model_source",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
