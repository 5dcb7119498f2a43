"""Tells an interrupt that the process was sent from a ``KeyboardInterrupt`` that code raises by itself."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["noticed_interrupts"]


@contextlib.contextmanager
def noticed_interrupts() -> Iterator[list[int]]:
    """Note the interrupts that the process is sent, to tell them from a KeyboardInterrupt that code raises."""
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: Any) -> Any:
        seen.append(number)
        return before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
