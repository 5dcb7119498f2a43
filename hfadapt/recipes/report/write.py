"""Write everything that a person reads of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.atomic import write_whole
from .asked import asked_tables
from .card import model_card
from .html import html_report
from .plots import PARAMETERS, write_plots
from .table import conditions, legend, markdown_table, proof_lines, to_markdown

if TYPE_CHECKING:
    from ..results import RunResult

__all__ = ["write_report"]


def write_report(
    result: RunResult,
    folder: Path,
    adapter: Path | None = None,
    sections: Iterable[str] = (),
    pairs: Collection[str] = (),
) -> list[Path]:
    """Write ``results.md``, ``plots/*.png``, ``report.html``, and the card with a plot into the adapter's folder.

    Args:
        result: Of the run.
        folder: Of the run.
        adapter: The adapter's folder; ``None`` writes no card.
        sections: Further sections of the card, from plugins.
        pairs: The tasks that read two texts.

    Returns:
        The files, the report first.
    """
    plots = write_plots(result, folder / "plots")
    report, table = folder / "report.html", folder / "results.md"
    write_whole(report, html_report(result, plots).encode())
    lines = [markdown_table(result), "", f"\\{legend(result)} {conditions(result)}", ""]
    lines += [f"- {line}" for line in proof_lines(result)]
    for title, asked in asked_tables(result).items():
        lines += ["", f"## {title}", "", to_markdown(*asked)]
    write_whole(table, ("\n".join(lines) + "\n").encode())
    written = [report, table, *plots.values()]
    if adapter is not None:
        card, picture = adapter / "README.md", adapter / plots[PARAMETERS].name
        write_whole(picture, plots[PARAMETERS].read_bytes())
        write_whole(card, model_card(result, sections, pairs, picture.name).encode())
        written += [picture, card]
    return written
