"""Reports of runs: tables, plots, ``report.html`` and the adapter's model card."""

from hfadapt.recipes.report.card import model_card
from hfadapt.recipes.report.html import html_report
from hfadapt.recipes.report.plots import write_plots
from hfadapt.recipes.report.table import (
    conditions,
    legend,
    markdown_table,
    proof_lines,
    result_rows,
    rich_table,
    to_markdown,
)
from hfadapt.recipes.report.write import write_report

__all__ = [
    "conditions",
    "html_report",
    "legend",
    "markdown_table",
    "model_card",
    "proof_lines",
    "result_rows",
    "rich_table",
    "to_markdown",
    "write_plots",
    "write_report",
]
