"""The table of an op's measurements on its page: every case beside its goal, its floor and its nearest rival."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..recipes.report.table import to_markdown

__all__ = ["markdown_figures"]

_COLUMNS = ("case", "ms", "rival", "ratio", "default allocator", "goal", "floor ms", "of floor", "nearest rival")


def markdown_figures(result: Mapping[str, Any], op: str) -> str:
    """A markdown table of one op, from a result of ``hfadapt_kernels.bench.run_ops``.

    A case has a line for each rival that has a goal, or for its first rival. Figures are of the warm allocator, but for
    the column that names the other. A goal that is missed stands in bold.
    """
    rows = [row for row in result["rows"] if row["op"] == op]
    warm = [row for row in rows if row["allocator"] == "warm"]
    default = {(row["case"], row["rival"]): row["ratio"] for row in rows if row["allocator"] == "default"}
    lines = []
    for case in dict.fromkeys(row["case"] for row in warm):
        rivals = [row for row in warm if row["case"] == case]
        nearest = min(rivals, key=lambda row: row["ratio"])
        for row in [row for row in rivals if row["goal"]] or rivals[:1]:
            other = default.get((case, row["rival"]))
            lines.append(
                (
                    case.removeprefix(op).strip(),
                    f"{row['median_ms']:.2f}",
                    row["rival"],
                    f"{row['ratio']:.2f}x",
                    f"{other:.2f}x" if other else "-",
                    _goal(row),
                    f"{row['floor_ms']:.2f}",
                    f"{row['floor_fraction']:.0%}",
                    f"{nearest['ratio']:.2f}x {nearest['rival']}" if len(rivals) > 1 else "-",
                )
            )
    device = result["device"]
    where = f"{device['processor']}, {rows[0]['threads']} threads, torch {device['torch']}" if rows else ""
    return f"{to_markdown(_COLUMNS, lines)}\n\n{where}; a goal in bold is missed."


def _goal(row: Mapping[str, Any]) -> str:
    if not row["goal"]:
        return "-"
    goal = f"{row['goal']:g}x"
    return goal if row["ratio"] >= row["goal"] else f"**{goal}**"
