"""The final table of a run: as rows, as Markdown, and for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ..results import ArmResult, RunResult

__all__ = ["conditions", "legend", "markdown_table", "proof_lines", "result_rows", "rich_table", "to_markdown"]

_NUMBER = re.compile(r"-|[-+]?[\d.,]+[%x*]*")


def result_rows(result: RunResult) -> tuple[list[str], list[list[str]]]:
    """Column names and one row an arm, the best value of each task marked with ``*``."""
    columns = [
        "",
        *(_column(f"{task} {metric}", result.greater_is_better(metric)) for task, metric in result.tasks.items()),
        _column("macro", result.greater_is_better("macro")),
        "params a task",
        "all tasks / base",
        "train s",
        "tokens/s",
    ]
    best = {
        task: _best((_of(arm, task, metric) for arm in result.arms), result.greater_is_better(metric))
        for task, metric in result.tasks.items()
    }
    best_macro = _best((arm.macro for arm in result.arms), result.greater_is_better("macro"))
    rows = []
    for arm in result.arms:
        scores = [_score(_of(arm, task, metric), best[task]) for task, metric in result.tasks.items()]
        rows.append(
            [
                arm.title,
                *scores,
                _score(arm.macro, best_macro),
                f"{arm.parameters_task:,}",
                f"{arm.parameters_total / result.base_parameters:.3f}x",
                f"{arm.seconds:.0f}",
                f"{arm.tokens_per_second:,.0f}",
            ]
        )
    return columns, rows


def _column(title: str, greater_is_better: bool) -> str:
    return title if greater_is_better else f"{title} (lower is better)"


def _of(arm: ArmResult, task: str, metric: str) -> float | None:
    return arm.scores.get(task, {}).get(metric)


def _best(values: Iterable[float | None], greater_is_better: bool) -> float | None:
    """The best of the values that are numbers; ``None`` without one."""
    found = [value for value in values if value is not None and not math.isnan(value)]
    return (max if greater_is_better else min)(found, default=None)


def _score(value: float | None, best: float | None) -> str:
    return "-" if value is None else f"{value:.3f}{'*' if value == best else ''}"


def legend(result: RunResult) -> str:
    """What the marks, the averages and the rows of the table are, in a few sentences."""
    parts = ["* best of the column."]
    left_out = result.macro.get("left_out", {})
    if left_out:
        held = ", ".join(result.macro["tasks"])
        reasons = "; ".join(f"{task} is left out ({reason})" for task, reason in left_out.items())
        parts.append(f"macro: mean over {held}; {reasons}.")
    for task, split in result.splits.items():
        if task in result.held_out and split == "validation":
            count, total = result.held_out[task]
            parts.append(f"{task} is scored on a held-out part: {count:,} of its {total:,} training rows.")
        elif split != result.split:
            parts.append(f"{task} is scored on its {split} split.")
    for arm in result.arms:
        for line in arm.history:
            if (task := line.get("stopped_task")) is not None:
                best = f"{line['best']:.3f} at step {line['best_step']:,}"
                parts.append(f"{task} stopped at step {line['step']:,} of {arm.title}, no better than {best}.")
    if result.untrained:
        parts.append(f"Never drawn, so untrained in {result.arms[0].title}: {', '.join(result.untrained)}.")
    return " ".join(parts)


def to_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with its columns padded; columns of numbers are right-aligned."""
    table = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(columns))]
    numbers = [all(_NUMBER.fullmatch(row[i]) for row in table[1:]) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    rules = [
        "-" * (width + 1) + ":" if right else "-" * (width + 2) for width, right in zip(widths, numbers, strict=True)
    ]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def markdown_table(result: RunResult) -> str:
    """The result as a Markdown table."""
    return to_markdown(*result_rows(result))


def rich_table(result: RunResult) -> Table:
    """The result for the terminal."""
    from rich import box
    from rich.table import Table

    columns, rows = result_rows(result)
    table = Table(box=box.SIMPLE_HEAD, title=f"{result.split.capitalize()} split", title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"[bold]{cell}[/bold]" if cell.endswith("*") else cell for cell in row))
    return table


def conditions(result: RunResult) -> str:
    """How the numbers were measured, in one sentence."""
    machine = result.machine
    steps = ", ".join(f"{arm.steps} steps ({arm.title})" for arm in result.arms)
    return (
        f"Base {result.model} ({result.base_parameters:,} parameters); one seed; {steps}; {machine.get('device')}, "
        f"{machine.get('threads')} threads, {machine.get('dtype')}; torch {machine.get('torch')}, transformers "
        f"{machine.get('transformers')}, hfadapt {machine.get('hfadapt')}; whole run {result.seconds:.0f} s."
    )


def proof_lines(result: RunResult) -> list[str]:
    """What was checked after training, in words."""
    reload, mixed = result.proof["reload"], result.proof["mixed_batch"]
    size = sum(reload["bytes"].values()) / 1e6
    same = "identical to the last bit" if reload["bit_identical"] else "NOT IDENTICAL"
    equal = "equal" if mixed["predictions_equal"] else "DIFFERENT"
    return [
        f"Adapter folder {reload['folder']} ({size:.1f} MB) loaded into a fresh base: {reload['logits_compared']:,} "
        f"logits {same}.",
        f"One mixed batch ({mixed['rows']} rows, {mixed['tasks']} tasks) in a single forward: predictions {equal} to "
        f"each task alone, largest difference of a logit {mixed['largest_difference']:.1e}.",
    ]
