"""The one place that calls stock methods with what a caller gave to an adapted model.

Nothing else stands here. A stock method that warns of its arguments names the module of whoever called it, and an
argument that a caller wrote is the caller's to hear about: our tests take warnings from hfadapt's files as errors, save
for those from this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["hand_on"]


def hand_on(stock: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Return what ``stock`` returns for a caller's arguments."""
    return stock(*args, **kwargs)
