"""What a schedule will do, before anything is trained: a table to read and rows to plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .schedule import Schedule

__all__ = ["Preview"]


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
            "passes": (self.rows.sum(axis=0) / np.asarray(schedule.sizes)).tolist(),
        }

    def __str__(self) -> str:
        schedule = self.schedule
        shown = self.probabilities
        rows = self.rows.sum(axis=0)
        epochs = len(shown)
        picks = sorted({0, epochs // 2, epochs - 1})
        width = max(len("task"), *map(len, self.names))
        lines = [
            f"{schedule.strategy!r}, {schedule.form} batches: {epochs} epochs of {schedule.steps} steps "
            f"of {schedule.layout.step_rows} rows, seed {schedule.seed}",
            f"{'task':<{width}} {'rows':>9} "
            + " ".join(f"{f'p epoch {epoch + 1}':>11}" for epoch in picks)
            + f" {'drawn':>9} {'passes':>7}",
        ]
        for task, name in enumerate(self.names):
            lines.append(
                f"{name:<{width}} {schedule.sizes[task]:>9,} "
                + " ".join(f"{shown[epoch, task]:>11.4f}" for epoch in picks)
                + f" {rows[task]:>9,} {rows[task] / schedule.sizes[task]:>7.2f}"
            )
        return "\n".join(lines)
