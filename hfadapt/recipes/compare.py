"""Runs beside each other: their scores, what they cost, and what differs in their recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from .results import RESULTS_FILE, RunResult

__all__ = ["compare_runs"]

# Where a run writes says nothing of what it did.
_NO_DIFFERENCE = ("output", "fast")


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Compare finished runs.

    Args:
        folders: Two or more, of runs.

    Returns:
        ``{"runs": {name: {"scores", "splits", "macro", ...}}, "differences": {key: {name: value}}}``, each run under
        the shortest end of its path that no other has.

    Raises:
        DataError: fewer than two, the same twice, or no run has ended in one of them.
    """
    places = [Path(folder).resolve() for folder in folders]
    if len(places) < 2 or len(set(places)) < len(places):
        raise DataError(
            "there is nothing to compare",
            where="hfadapt compare",
            got=", ".join(map(str, folders)) or "no run",
            allowed="two different runs or more",
            try_="hfadapt compare runs/a runs/b",
        )
    results = {place: _read(place) for place in places}
    names = _names(places)
    runs = {names[place]: _facts(result) for place, result in results.items()}
    recipes = {names[place]: dict(_flat(_recipe(result))) for place, result in results.items()}
    keys = sorted({key for recipe in recipes.values() for key in recipe})
    differences = {}
    for key in keys:
        values = {name: recipe.get(key) for name, recipe in recipes.items()}
        if key.split(".")[0] not in _NO_DIFFERENCE and any(v != values[names[places[0]]] for v in values.values()):
            differences[key] = values
    return {"runs": runs, "differences": differences}


def _read(folder: Path) -> RunResult:
    if not (folder / RESULTS_FILE).is_file():
        raise DataError(
            "no run has ended there",
            where=str(folder),
            got="a folder without results.json" if folder.is_dir() else "no such folder",
            allowed="the output folder of hfadapt train",
            try_="hfadapt train RECIPE --output FOLDER, or --resume of one that was cut off",
        )
    return RunResult.read(folder)


def _names(places: Sequence[Path]) -> dict[Path, str]:
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = {place: "/".join(place.parts[-depth:]) for place in places}
        if len(set(names.values())) == len(places):
            return names
    raise AssertionError("different paths differ as a whole")


def _facts(result: RunResult) -> dict[str, Any]:
    arm = result.arms[0]
    return {
        "title": arm.title,
        "model": result.model,
        "scores": {task: dict(arm.scores.get(task, {})) for task in result.tasks},
        "splits": dict(result.splits),
        "macro": arm.macro,
        "parameters_task": arm.parameters_task,
        "multiple_of_base": arm.parameters_total / result.base_parameters,
        "steps": arm.steps,
        "seconds": arm.seconds,
        "tokens_per_second": arm.tokens_per_second,
        "device": result.machine.get("device"),
        "hfadapt": result.machine.get("hfadapt"),
    }


def _recipe(result: RunResult) -> Any:
    """The recipe as it was run; of versions that did not record that, as it was written."""
    return yaml.safe_load(result.resolved or result.recipe)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a recipe by the path that an override would write; tasks and methods by their names."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _flat(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            name = below.get("name", number) if isinstance(below, Mapping) else number
            if path == "tasks" and not isinstance(below, Mapping):
                yield f"{path}.{below}.name", below
            else:
                yield from _flat(below, f"{path}.{name}")
    else:
        yield path, value
