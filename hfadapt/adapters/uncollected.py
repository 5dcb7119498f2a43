"""Building without Python's collector of cycles."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["uncollected"]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let the collector wait while many objects are made that stay.

    Their number alone would start it, again and again, and each time it walks everything that torch and transformers
    have loaded: for a thousand deltas two or three times, which takes longer than making them.
    """
    if not gc.isenabled():  # it is the user's choice, or that of a caller of ours
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
