"""The plots of a run, as PNG files: learning curves, sampling probabilities, accuracy against parameters; where the
recipe asks for them, scores against dropped layers and the trials of a search."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.atomic import write_whole
from ...errors import HFAdaptError
from ...errors.full_disk import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results import RunResult

__all__ = ["COLORS", "PARAMETERS", "require_matplotlib", "save_figure", "write_plots"]

COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
PARAMETERS = "Macro average against parameters"
STYLES = {"adapted": "-", "frozen_head": ":", "full_finetuning": "--"}


def write_plots(result: RunResult, folder: Path) -> dict[str, Path]:
    """Draw every plot into a folder; returns title to file.

    Raises:
        HFAdaptError: matplotlib is not installed.
    """
    require_matplotlib()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "Learning curves (validation)": ("learning_curves.png", _learning_curves),
        "Sampling probability of each task": ("sampling.png", _sampling),
        PARAMETERS: ("parameters.png", _parameters),
    }
    if result.depths:
        plots["Score against dropped layers"] = ("depths.png", _depths)
    if result.search:
        plots["Trials of the search (validation)"] = ("search.png", _search)
    return {title: draw(result, folder / name) for title, (name, draw) in plots.items()}


def require_matplotlib() -> None:
    """Have matplotlib draw into files only: no window, and no display needed.

    Raises:
        HFAdaptError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise HFAdaptError(
            "plots need matplotlib",
            where="the report of a run",
            got="no matplotlib",
            allowed="the packages of the extra 'report'",
            try_="pip install 'hfadapt[report]'",
        ) from error
    matplotlib.use("Agg")


def _learning_curves(result: RunResult, path: Path) -> Path:
    figure, axes = _figure(len(result.tasks))
    for ax, (task, metric) in zip(axes, result.tasks.items(), strict=True):
        for arm in result.arms:
            steps, values = arm.curve(task, metric)
            if values:
                ax.plot(steps, values, STYLES.get(arm.name, "-"), marker="o", markersize=3, label=arm.title)
        _finish(ax, task, "epoch", metric if result.greater_is_better(metric) else f"{metric} (lower is better)")
    axes[0].legend(fontsize=7, frameon=False)
    return save_figure(figure, path)


def _sampling(result: RunResult, path: Path) -> Path:
    figure, axes = _figure(1)
    probabilities = result.sampling["probabilities"]
    epochs = range(1, len(probabilities) + 1)
    for index, task in enumerate(result.sampling["tasks"]):
        share = [epoch[index] for epoch in probabilities]
        label = f"{task} ({result.sampling['sizes'][index]:,} rows)"
        axes[0].plot(epochs, share, marker="o", markersize=4, color=COLORS[index % len(COLORS)], label=label)
    axes[0].set_ylim(0, 1)
    axes[0].legend(fontsize=8, frameon=False)
    _finish(axes[0], result.sampling["strategy"], "epoch", "probability")
    return save_figure(figure, path)


def _parameters(result: RunResult, path: Path) -> Path:
    figure, axes = _figure(1)
    for index, arm in enumerate(result.arms):
        multiple = arm.parameters_total / result.base_parameters
        axes[0].scatter([multiple], [arm.macro], s=60, color=COLORS[index % len(COLORS)], zorder=3)
        axes[0].annotate(
            f"{arm.title}\n{multiple:.2f}x, {arm.macro:.3f}",
            (multiple, arm.macro),
            xytext=(0, 9),
            textcoords="offset points",
            fontsize=8,
            ha="center",
        )
    axes[0].margins(0.35, 0.35)
    y = f"macro average ({result.split}){'' if result.greater_is_better('macro') else ', lower is better'}"
    _finish(axes[0], "", "parameters for all tasks, as a multiple of the base", y)
    return save_figure(figure, path)


def _depths(result: RunResult, path: Path) -> Path:
    figure, axes = _figure(len(result.tasks))
    layers = [int(depth) for depth in result.depths]
    for index, (ax, (task, metric)) in enumerate(zip(axes, result.tasks.items(), strict=True)):
        values = [at["scores"].get(task, {}).get(metric, math.nan) for at in result.depths.values()]
        ax.plot(layers, values, marker="o", markersize=4, color=COLORS[index % len(COLORS)])
        ax.set_xticks(layers)
        y = metric if result.greater_is_better(metric) else f"{metric} (lower is better)"
        _finish(ax, task, "lowest layers without deltas", y)
    return save_figure(figure, path)


def _search(result: RunResult, path: Path) -> Path:
    figure, axes = _figure(1)
    search = result.search
    choose = max if search["direction"] == "maximize" else min
    numbers = [number for number, trial in enumerate(search["trials"], 1) if trial["score"] is not None]
    scores = [trial["score"] for trial in search["trials"] if trial["score"] is not None]
    axes[0].scatter(numbers, scores, s=24, color=COLORS[0], zorder=3, label="trial")
    best = [choose(scores[: count + 1]) for count in range(len(scores))]
    axes[0].step(numbers, best, where="post", color=COLORS[1], label="best so far")
    axes[0].legend(fontsize=8, frameon=False)
    _finish(axes[0], "", "trial", search["metric"])
    return save_figure(figure, path)


def _figure(columns: int) -> tuple[Any, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 3.6 * columns), 3.8), dpi=130, layout="constrained")
    grid = figure.subplots(1, columns, squeeze=False)
    return figure, list(grid[0])


def _finish(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(True, alpha=0.25)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_whole(path, drawn.getvalue())
    return path
