"""Recipes and their runs: what ``hfadapt train`` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors.first_use import on_first_use

if TYPE_CHECKING:
    from ..adapters.model_source import model_path as model_path
    from .results import ArmResult as ArmResult
    from .results import RunResult as RunResult

# names are loaded on first use: reading a recipe needs no torch
_HOMES = {
    "ArmResult": ".results",
    "RunResult": ".results",
    "model_path": "..adapters.model_source",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__ = on_first_use(__name__, _HOMES)
