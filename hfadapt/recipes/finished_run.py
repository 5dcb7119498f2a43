"""A run that has ended, found again by its folder: its adapter, and the data that its recipe names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.sources import load_splits
from .build import build_task, hold_out
from .config import Recipe, TaskSection, read_recipe
from .results import RESULTS_FILE, RunResult

__all__ = ["ADAPTER_FOLDER", "FinishedRun", "adapter_of", "find_run"]

ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that has ended.

    Args:
        folder: The run's.
        result: What it found.
    """

    folder: Path
    result: RunResult

    @property
    def adapter(self) -> Path:
        """The folder of its adapter."""
        return self.folder / ADAPTER_FOLDER

    @property
    def splits(self) -> Mapping[str, str]:
        """Task to the split that it was scored on."""
        return self.result.splits

    @property
    def recipe(self) -> Recipe:
        """As it was run, with the changes of the command line (of which runs of older versions hold none)."""
        return read_recipe(self.result.resolved or self.result.recipe, source=str(self.folder / RESULTS_FILE))

    @property
    def base(self) -> str | None:
        """The folder of its base, where the recipe named one that lay below the folder in which it was started."""
        place = Path(self.result.working_folder) / self.result.model
        return str(place) if self.result.working_folder and place.is_dir() else None

    def data(self, tasks: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The splits of some tasks as the run had them, limits and rows that were held out included."""
        if not tasks:
            return {}
        recipe = self.recipe
        sections = [_from(Path(self.result.working_folder), one) for one in recipe.tasks if one.name in tasks]
        built, _ = hold_out([build_task(section) for section in sections], recipe.seed)
        return {task.name: load_splits(task) for task in built}


def find_run(folder: Path) -> FinishedRun | None:
    """The run whose folder this is, or whose adapter's; None where no run has ended there.

    Raises:
        DataError: its results are of a version that is not known.
    """
    for place in (folder, folder.parent if folder.name == ADAPTER_FOLDER else folder):
        if (place / RESULTS_FILE).is_file() and (place / ADAPTER_FOLDER).is_dir():
            return FinishedRun(place, RunResult.read(place))
    return None


def adapter_of(folder: Path) -> Path:
    """The adapter's folder, where ``folder`` is that of a run; ``folder`` itself otherwise."""
    run = find_run(folder)
    return folder if run is None else run.adapter


def _from(started: Path, section: TaskSection) -> TaskSection:
    """A task whose relative paths count from the folder in which the run was started."""

    def settle(path: str) -> str:
        return str(started / path) if (started / path).exists() else path

    data = section.data
    if isinstance(data, str):
        return dataclasses.replace(section, data=settle(data))
    if isinstance(data, Mapping):
        return dataclasses.replace(section, data={split: settle(path) for split, path in data.items()})
    return section
