"""What a schedule will do, before anything is trained: a table to read and rows to plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from .schedule import Schedule

__all__ = ["Preview", "html_table"]


def html_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as notebooks show it; the first column stands on the left, numbers on the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        return "".join(
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    return f"<table><caption>{escape(caption)}</caption>{head}<tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Preview:
    """Sampling probabilities and the rows really drawn, per epoch and task.

    Args:
        names: Task names.
        schedule: What is previewed.
    """

    names: tuple[str, ...]
    schedule: Schedule

    @property
    def probabilities(self) -> np.ndarray:
        """[E, tasks]."""
        return np.stack([self.schedule.probabilities(epoch) for epoch in range(self.schedule.layout.epochs)])

    @property
    def rows(self) -> np.ndarray:
        """Rows drawn, [E, tasks]."""
        return np.stack([self.schedule.counts(epoch) for epoch in range(self.schedule.layout.epochs)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain lists, for ``--json`` and plots."""
        schedule = self.schedule
        return {
            "strategy": repr(schedule.strategy),
            "batch": schedule.form,
            "steps_per_epoch": schedule.steps,
            "rows_per_step": schedule.layout.step_rows,
            "epochs": schedule.layout.epochs,
            "seed": schedule.seed,
            "tasks": list(self.names),
            "sizes": list(schedule.sizes),
            "probabilities": self.probabilities.tolist(),
            "rows": self.rows.tolist(),
            "passes": [
                drawn / size if size else None
                for drawn, size in zip(self.rows.sum(axis=0).tolist(), schedule.sizes, strict=True)
            ],
        }

    def _cells(self) -> tuple[str, list[list[str]]]:
        """What is shown: a caption, and lines of which the first is the header."""
        schedule, shown = self.schedule, self.probabilities
        rows = self.rows.sum(axis=0)
        epochs = len(shown)
        picks = sorted({0, epochs // 2, epochs - 1})
        caption = (
            f"{schedule.strategy!r}, {schedule.form} batches: {epochs} epochs of {schedule.steps} steps "
            f"of {schedule.layout.step_rows} rows, seed {schedule.seed}"
        )
        lines = [["task", "rows", *(f"p epoch {epoch + 1}" for epoch in picks), "drawn", "passes"]]
        for task, (name, size, drawn) in enumerate(zip(self.names, schedule.sizes, rows, strict=True)):
            odds = (f"{shown[epoch, task]:.4f}" for epoch in picks)
            passes = f"{drawn / size:.2f}" if size else "?"
            lines.append([name, f"{size:,}" if size else "stream", *odds, f"{drawn:,}", passes])
        return caption, lines

    def __str__(self) -> str:
        caption, lines = self._cells()
        first = max(len(line[0]) for line in lines)
        widths = [9, *[11] * (len(lines[0]) - 4), 9, 7]
        return "\n".join(
            [caption]
            + [
                f"{name:<{first}} " + " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
                for name, *cells in lines
            ]
        )

    def _repr_html_(self) -> str:
        """The same table, which a notebook shows."""
        caption, (header, *lines) = self._cells()
        return html_table(caption, header, lines)
