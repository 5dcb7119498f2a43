"""Calls a function right after a module of another library was imported, which is not imported for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["call"]


def call(module: str, function: str) -> None:
    """Call a function now, where a module is imported already, or else right after it is.

    Args:
        module: Its full name.
        function: As ``package.module:function``; it is imported when it is called.
    """
    if module in sys.modules:
        _resolved(function)()
    elif not any(
        isinstance(finder, _AfterImport) and finder.waits_for == (module, function) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _AfterImport(module, function))


class _AfterImport:
    """Finds one module by the other finders and makes a call once it is loaded.

    A finder and loader by its methods: ``importlib.abc`` would take a tenth of the time of ``import hfadapt``.
    """

    def __init__(self, module: str, function: str) -> None:
        self.waits_for = (module, function)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.waits_for[0] or self not in sys.meta_path:
            return None
        # Whoever asks may only want to know whether it is there, so this goes on waiting until the module is loaded.
        # Those behind it are asked, and not those before, one of which may be asking.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                self._loader = spec.loader
                loader: Any = self  # a loader by its methods
                spec.loader = loader
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        _resolved(self.waits_for[1])()


def _resolved(function: str) -> Any:
    # pkgutil.resolve_name does so too, and takes long to import
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)
