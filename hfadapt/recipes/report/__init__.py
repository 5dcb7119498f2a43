"""Reports of runs: tables, plots, ``report.html`` and the adapter's model card."""

from .card import model_card
from .html import html_report
from .plots import write_plots
from .table import (
    conditions,
    legend,
    markdown_table,
    proof_lines,
    result_rows,
    rich_table,
    to_markdown,
)
from .write import write_report

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
