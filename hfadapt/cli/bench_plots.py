"""The plot of each op's benchmark: how many times faster than its rival, case by case, beside the goal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..recipes.report.plots import COLORS, require_matplotlib, save_figure

__all__ = ["write_bench_plots"]


def write_bench_plots(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``<op>.png`` for every op of a result of ``hfadapt_kernels.bench.run_ops``.

    Raises:
        HFAdaptError: matplotlib is not installed.
    """
    require_matplotlib()
    rows = result["rows"]
    device = result["device"]
    title = f"{device['processor']}, {rows[0]['threads'] if rows else 0} threads, torch {device['torch']}"
    return [
        _draw(op, [row for row in rows if row["op"] == op], title, folder / f"{op}.png")
        for op in sorted({row["op"] for row in rows})
    ]


def _draw(op: str, rows: list[Mapping[str, Any]], title: str, path: Path) -> Path:
    from matplotlib.figure import Figure

    bars = list(dict.fromkeys((row["case"], row["rival"]) for row in rows))
    allocators = list(dict.fromkeys(row["allocator"] for row in rows))
    figure = Figure(figsize=(9.5, 1.4 + 0.34 * len(bars)), dpi=110, layout="constrained")
    ax = figure.subplots()
    height = 0.8 / len(allocators)
    for index, allocator in enumerate(allocators):
        found = {(row["case"], row["rival"]): row["ratio"] for row in rows if row["allocator"] == allocator}
        places = [bars.index(bar) + (index - (len(allocators) - 1) / 2) * height for bar in found]
        ax.barh(places, list(found.values()), height, color=COLORS[index], label=f"{allocator} allocator")
    goals = {(row["case"], row["rival"]): row["goal"] for row in rows if row["goal"]}
    if goals:
        ax.scatter(
            list(goals.values()), [bars.index(bar) for bar in goals], marker="|", s=160, color="black", label="goal"
        )
    ax.axvline(1.0, color="gray", linewidth=0.8)
    ax.set_yticks(
        range(len(bars)), [f"{case.removeprefix(op).strip()}  /  {rival}" for case, rival in bars], fontsize=7
    )
    ax.invert_yaxis()
    ax.set_xlabel("rival's median time / ours")
    ax.set_title(f"{op}\n{title}", fontsize=9)
    ax.legend(fontsize=7, frameon=False)
    return save_figure(figure, path)
