"""``report.html``: one file that holds everything, plots included."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .asked import asked_tables
from .table import conditions, legend, proof_lines, result_rows

if TYPE_CHECKING:
    from ..results import RunResult

__all__ = ["html_report"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #e5e7eb; }
th:first-child, td:first-child { text-align: left; }
tr.first td { background: #eff6ff; }
figure { margin: 1rem 0; } img { max-width: 100%; }
pre { background: #f3f4f6; padding: 1rem; overflow-x: auto; font-size: 13px; }
.note { color: #6b7280; font-size: 13px; }
@media (prefers-color-scheme: dark) {
  body { background: #111827; color: #e5e7eb; } th, td { border-color: #374151; } tr.first td { background: #1e293b; }
  pre { background: #1f2937; } img { background: #fff; border-radius: 6px; }
}
"""


def html_report(result: RunResult, plots: Mapping[str, Path]) -> str:
    """The report as one self-contained page.

    Args:
        result: Of the run.
        plots: Title to PNG file; the files are embedded.
    """
    columns, rows = result_rows(result)
    metrics = _all_metrics(result)
    tasks = ", ".join(result.tasks)
    parts = [
        f"<h1>{html.escape(result.arms[0].title)}: {html.escape(tasks)}</h1>",
        f'<p class="note">{html.escape(conditions(result))}</p>',
        f"<h2>{result.split.capitalize()} split</h2>",
        _table(columns, rows),
        f'<p class="note">{html.escape(legend(result))} "params a task" are those that each task needs beside the '
        'base; "all tasks / base" is everything that must be stored to serve all tasks, as a multiple of the base.</p>',
        "<h2>Checked after training</h2>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in proof_lines(result)) + "</ul>",
        *(f"<h2>{html.escape(title)}</h2>{_image(title, path)}" for title, path in plots.items()),
        *(f"<h2>{html.escape(title)}</h2>{_plain(*table)}" for title, table in asked_tables(result).items()),
        f"<h2>Every metric ({result.split})</h2>",
        _table(["task", "metric", *(arm.title for arm in result.arms)], metrics),
        *_recipe(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>hfadapt: {html.escape(tasks)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _recipe(result: RunResult) -> list[str]:
    """The recipe as it was run, and beside it what was written and what the command line changed."""
    written = ["<h2>Recipe</h2>", f"<pre>{html.escape(result.recipe)}</pre>"]
    if not result.overrides:
        return written
    changes = "\n".join(result.overrides)
    return [
        "<h2>Recipe as it was run</h2>",
        f"<pre>{html.escape(result.resolved)}</pre>",
        f"<h2>Changed on the command line</h2><pre>{html.escape(changes)}</pre>",
        *written,
    ]


def _all_metrics(result: RunResult) -> list[list[str]]:
    rows = []
    for task in result.tasks:
        for metric in result.arms[0].scores.get(task, {}):
            values = (arm.scores.get(task, {}).get(metric) for arm in result.arms)
            rows.append([task, metric, *("-" if value is None else f"{value:.4f}" for value in values)])
    return rows


def _plain(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table none of whose rows is the adapted run's."""
    return _table(columns, rows).replace("<tr class=first>", "<tr>")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in columns)
    body = "".join(
        f"<tr{' class=first' if i == 0 else ''}>"
        + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _image(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}"></figure>'
