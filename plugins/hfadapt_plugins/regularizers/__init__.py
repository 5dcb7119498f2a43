"""The regularizers that ship with hfadapt, each registered through the same hook as a third party's."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from hfadapt.plugins import Deferred, Registry, hookimpl

__all__ = ["register_regularizers"]

#: The class of each, whose module is called as the regularizer is and imported when it is used.
_CLASSES = {
    "freeat": "FreeAT",
    "freelb": "FreeLB",
    "pgd": "PGD",
    "r3f": "R3F",
    "r4f": "R4F",
    "r_drop": "RDrop",
    "sam": "SAM",
    "smart": "SMART",
    "vat": "VAT",
    "yopo": "YOPO",
}


@hookimpl
def register_regularizers(registry: Registry) -> None:
    """Register all regularizers of this package."""
    for name, cls in _CLASSES.items():
        registry.add(name, Deferred(partial(_found, name, cls), (cls,)))


def _found(module: str, name: str) -> Any:
    return getattr(import_module(f".{module}", __package__), name)
