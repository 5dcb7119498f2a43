"""The formats of other libraries' folders that hfadapt reads and writes: one line each."""

from __future__ import annotations

from typing import Any

from hfadapt import hookimpl

from .adapterhub import AdapterHubFormat
from .peft import PeftFormat

__all__ = ["register_formats"]


@hookimpl
def register_formats(registry: Any) -> None:
    """Add every format."""
    registry.add("adapterhub", AdapterHubFormat())
    registry.add("peft", PeftFormat())
