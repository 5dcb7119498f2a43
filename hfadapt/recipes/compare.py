"""Runs beside each other: their scores, what they cost, and what differs in their recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, DataError
from .results import RESULTS_FILE, RunResult
from .settings import Setting, flat, settings_of

__all__ = ["compare_runs", "differences"]

# Where a run writes says nothing of what it did.
_NO_DIFFERENCE = ("output", "fast")


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Compare finished runs.

    Args:
        folders: Two or more, of runs.

    Returns:
        ``{"runs": {name: {"scores", "splits", "macro", ...}}, "differences": {key: {name: value}}, "as_written":
        None}``, each run under the shortest end of its path that no other has. Short and long forms of a setting are
        no difference, nor is a default that one recipe writes and another leaves out. Where a recipe cannot be read
        here any more, all are compared as they were written, and ``as_written`` says why.

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
    settings, unread = _settings({names[place]: result for place, result in results.items()})
    return {"runs": runs, "differences": differences(settings), "as_written": unread}


def _settings(results: Mapping[str, RunResult]) -> tuple[dict[str, dict[str, Setting]], str | None]:
    """The settings of each run; as they were written, and why, where one asks for what is not here any more."""
    # deferred: reading a recipe imports every plugin
    from .config import read_recipe

    try:
        return {
            name: settings_of(read_recipe(one.resolved or one.recipe, source=name), Path(one.working_folder))
            for name, one in results.items()
        }, None
    except ConfigError as error:
        return {name: dict(flat(_written(one))) for name, one in results.items()}, str(error)


def differences(recipes: Mapping[str, Mapping[str, Setting]]) -> dict[str, dict[str, Any]]:
    """Where recipes differ.

    Args:
        recipes: The settings of each, by its name.

    Returns:
        Path to what each has there. A path that only some have counts where they do not have its default.
    """
    if all("method.1.method" not in one for one in recipes.values()):
        # who writes one method addresses its options without a number
        recipes = {
            name: {path.replace("method.0.", "method.", 1): setting for path, setting in one.items()}
            for name, one in recipes.items()
        }
    found_in = {}
    for path in dict.fromkeys(path for recipe in recipes.values() for path in recipe):
        found = [recipe.get(path) for recipe in recipes.values()]
        there = [setting for setting in found if setting is not None]
        other = any(setting.value != there[0].value for setting in there)
        lacking = len(there) < len(found) and not all(setting.default for setting in there)
        if path.partition(".")[0] not in _NO_DIFFERENCE and (other or lacking):
            values = [None if setting is None else setting.value for setting in found]
            found_in[path] = dict(zip(recipes, values, strict=True))
    return dict(sorted(found_in.items()))


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


def _written(result: RunResult) -> Any:
    """The recipe as it was run; of versions that did not record that, as it was written."""
    return yaml.safe_load(result.resolved or result.recipe)
