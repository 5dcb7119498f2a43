"""The project's own description, as tests read it, and what makes its pages quick to run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import DatasetDict

ROOT = Path(__file__).resolve().parents[2]


def pyproject() -> dict[str, Any]:
    """What pyproject.toml says."""
    # On Python 3.10 pytest itself needs the package of this name.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def first_rows_of(load: Callable[[str], DatasetDict]) -> Callable[[str], DatasetDict]:
    """Loads named data sets as ``load`` does, cut to the rows that a run of a page needs."""

    def short(name: str) -> DatasetDict:
        return DatasetDict({split: rows.select(range(64)) for split, rows in load(name).items()})

    return short
