"""The adaptation methods that hfadapt ships."""

from __future__ import annotations

from typing import Any

from hfadapt import hookimpl

from .low_rank import LowRankMethod
from .pal import PALMethod


@hookimpl
def register_methods(registry: Any) -> None:
    """Register every built-in method and preset."""
    registry.add("low_rank", LowRankMethod())
    registry.add("pal", PALMethod())
