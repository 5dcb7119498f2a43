"""The formats of other libraries' folders that hfadapt reads and writes, imported when one is read or written."""

from __future__ import annotations

from typing import Any

from hfadapt import hookimpl
from hfadapt.plugins import Deferred

__all__ = ["register_formats"]


@hookimpl
def register_formats(registry: Any) -> None:
    """Add every format."""
    registry.add("adapterhub", Deferred(_adapterhub))
    registry.add("peft", Deferred(_peft, ("load_peft",)))


def _adapterhub() -> Any:
    from .adapterhub import AdapterHubFormat

    return AdapterHubFormat()


def _peft() -> Any:
    from .peft import PeftFormat

    return PeftFormat()
