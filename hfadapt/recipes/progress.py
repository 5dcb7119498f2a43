"""Progress of a run as plain lines: what is trained, how far, how fast, how long still."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from transformers import TrainerCallback

__all__ = ["ProgressLines"]


class ProgressLines(TrainerCallback):
    """Prints one line every few seconds, which a terminal overwrites and a log keeps.

    Args:
        title: What is being trained, first on every line.
        every: Seconds between lines.
        stream: Where to; standard error by default, so that ``--json`` on standard output stays clean.
    """

    def __init__(self, title: str, every: float = 5.0, stream: TextIO | None = None) -> None:
        self.title = title
        self.stream = stream or sys.stderr
        self.every = every if not self.stream.isatty() else 0.5
        self._start = self._last = 0.0
        self._evaluated = 0
        self._loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = time.monotonic()
        self._say(f"{state.max_steps} steps", force=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Remember the loss and show an evaluation's macro average."""
        logs = logs or {}
        if "loss" in logs:
            self._loss = f"  loss {float(logs['loss']):.3f}"
        if "eval_macro" in logs:
            self._say(f"epoch {state.epoch:.0f}  validation macro {logs['eval_macro']:.3f}{self._loss}", force=True)
            self._evaluated = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show steps, speed and the time that is left."""
        passed = time.monotonic() - self._start
        left = passed / max(state.global_step, 1) * (state.max_steps - state.global_step)
        speed = passed / max(state.global_step, 1)
        self._say(
            f"step {state.global_step}/{state.max_steps}  {speed:.2f} s/step{self._loss}  about {left:.0f} s left"
        )

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show that an evaluation goes on."""
        self._evaluated += 1
        loader = kwargs.get("eval_dataloader")
        total = f"/{len(loader)}" if loader is not None else ""
        self._say(f"evaluating batch {self._evaluated}{total}")

    def _say(self, text: str, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._last < self.every:
            return
        self._last = now
        end = "\n" if force or not self.stream.isatty() else "\r"
        self.stream.write(f"{self.title}: {text}{' ' * 8 if end != chr(10) else ''}{end}")
        self.stream.flush()
