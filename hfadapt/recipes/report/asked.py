"""Tables of what a recipe may ask for beside the run: scores by dropped layers, and the trials of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..results import RunResult

__all__ = ["asked_tables"]


def asked_tables(result: RunResult) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Title to columns and rows; empty where the recipe asks for neither."""
    found = {}
    if result.depths:
        found[f"Scores without the deltas of the lowest layers ({result.split})"] = _depths(result)
    if result.search:
        found[f"Search: {result.search['metric']} on validation, {result.search['direction']}d"] = _trials(result)
    return found


def _depths(result: RunResult) -> tuple[list[str], list[list[str]]]:
    columns = ["layers dropped", *(f"{task} {metric}" for task, metric in result.tasks.items()), "macro"]
    rows = []
    for depth, at in result.depths.items():
        scores = [at["scores"].get(task, {}).get(metric) for task, metric in result.tasks.items()]
        rows.append([depth, *("-" if value is None else f"{value:.3f}" for value in [*scores, at["macro"]])])
    return columns, rows


def _trials(result: RunResult) -> tuple[list[str], list[list[str]]]:
    search = result.search
    paths = list(search["values"])
    rows = []
    for number, trial in enumerate(search["trials"]):
        shown = [
            f"{value:.3g}" if isinstance(value, float) else str(value)
            for value in (trial["values"].get(path, "-") for path in paths)
        ]
        score = "-" if trial["score"] is None else f"{trial['score']:.4f}"
        rows.append([str(number + 1), *shown, f"{score}*" if number == search["best"] else score])
    return ["trial", *paths, search["metric"]], rows
