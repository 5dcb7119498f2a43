"""Loading of plugins: the built-in ones and those that entry points name, with origin, blocking and tracing.

Nothing is loaded when ``hfadapt`` is imported; the first look-up in a registry loads everything once.
``HFADAPT_PLUGINS=a,b`` restricts which entry points load (empty: none), ``HFADAPT_BLOCK_PLUGINS=a,b`` blocks some,
built-in ones too; ``HFADAPT_STRICT_PLUGINS=1`` makes a failure fatal, ``HFADAPT_TRACE_PLUGINS=1`` prints every call.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from . import hookspecs
from .errors import PluginError, problem
from .registry import Registry

__all__ = [
    "BUILTIN_PLUGINS",
    "ENTRY_POINT_GROUP",
    "PluginRecord",
    "architectures",
    "backends",
    "manager",
    "methods",
    "mixing_strategies",
    "register",
    "regularizers",
    "reload",
    "report",
    "unregister",
]

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "hfadapt"
BUILTIN_PLUGINS = (
    "hfadapt_plugins.methods",
    "hfadapt_plugins.architectures",
    "hfadapt_plugins.mixing",
)
# Plugins of this process, by name; they survive a reload.
_ADDED: dict[str, Any] = {}
_REGISTRIES = {
    "register_methods": "method",
    "register_architectures": "architecture",
    "register_mixing_strategies": "mixing strategy",
    "register_regularizers": "regularizer",
    "register_backends": "backend",
}


@dataclass
class PluginRecord:
    """What became of one plugin: ``status`` is loaded, failed, invalid, not selected or blocked."""

    name: str
    origin: str
    version: str = ""
    status: str = "loaded"
    hooks: tuple[str, ...] = ()
    error: str = ""
    traceback: str = ""


@dataclass
class _Loaded:
    manager: pluggy.PluginManager
    records: list[PluginRecord]
    registries: dict[str, Registry] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)


def _strict() -> bool:
    return os.environ.get("HFADAPT_STRICT_PLUGINS", "") == "1"


def _fail(record: PluginRecord, status: str, message: str) -> None:
    record.status, record.error = status, message
    record.traceback = traceback.format_exc() if sys.exc_info()[0] else ""
    text = problem(
        f"plugin {record.name!r} was skipped ({status})",
        where=record.origin,
        got=message,
        try_="hfadapt plugins --verbose shows the traceback; HFADAPT_PLUGINS selects which plugins load",
    )
    if _strict():
        raise PluginError(text)
    logger.warning(text)


def _register(pm: pluggy.PluginManager, record: PluginRecord, module: ModuleType | Any) -> None:
    """Register one plugin object; a misspelt or malformed hook makes it invalid."""
    if pm.is_blocked(record.name):
        record.status = "blocked"
        return
    try:
        pm.register(module, name=record.name)
    except (pluggy.PluginValidationError, ValueError) as error:
        if pm.has_plugin(record.name):
            pm.unregister(name=record.name)
        _fail(record, "invalid", str(error))
        return
    callers = pm.get_hookcallers(module) or []
    unknown = sorted(c.name for c in callers if c.spec is None)
    if unknown:
        pm.unregister(name=record.name)
        known = ", ".join(sorted(n for n in dir(pm.hook) if not n.startswith("_")))
        _fail(record, "invalid", f"unknown hooks {', '.join(unknown)} (known: {known})")
        return
    record.hooks = tuple(sorted(c.name for c in callers))


def _load_entry_point(pm: pluggy.PluginManager, entry: EntryPoint, selected: set[str] | None) -> PluginRecord:
    dist = entry.dist
    record = PluginRecord(entry.name, dist.name if dist else entry.value, dist.version if dist else "")
    if selected is not None and entry.name not in selected:
        record.status = "not selected"
        return record
    if pm.is_blocked(entry.name):
        record.status = "blocked"
        return record
    try:
        module = entry.load()
    except Exception as error:  # a third party's import may fail in any way; it is reported by name
        _fail(record, "failed", f"{type(error).__name__}: {error}")
        return record
    _register(pm, record, module)
    return record


def _fill_registries(loaded: _Loaded) -> None:
    """Call each plugin's register hooks one by one, so that a failure is named and undone for that plugin alone."""
    loaded.registries = {hook: Registry(kind) for hook, kind in _REGISTRIES.items()}
    for record in loaded.records:
        if record.status != "loaded":
            continue
        plugin = loaded.manager.get_plugin(record.name)
        others = [p for p in loaded.manager.get_plugins() if p is not plugin]
        try:
            for hook, registry in loaded.registries.items():
                registry._current_origin = f"{record.name} ({record.origin} {record.version})".rstrip(" )") + ")"
                loaded.manager.subset_hook_caller(hook, others)(registry=registry)
            _add_backends(loaded, registry._current_origin)
        except Exception as error:  # as above: whatever a plugin raises, it is named and skipped
            _remove_backends(loaded, registry._current_origin)
            for registry in loaded.registries.values():
                registry.remove_origin(registry._current_origin)
            loaded.manager.unregister(name=record.name)
            _fail(record, "failed", f"{type(error).__name__}: {error}")


def _add_backends(loaded: _Loaded, origin: str) -> None:
    """Hand the implementations that one plugin registered to their ops."""
    registry = loaded.registries["register_backends"]
    for name in [name for name in registry if registry.origin(name) == origin]:
        from hfadapt_kernels.backend import add_backend

        implementation = registry[name]
        add_backend(name.removesuffix(f"-{implementation.backend}"), implementation)
        loaded.backends[implementation.backend] = origin


def _remove_backends(loaded: _Loaded, origin: str | None = None) -> None:
    """Take them out again: those of one plugin, or all."""
    for name in [name for name, by in loaded.backends.items() if origin in (None, by)]:
        from hfadapt_kernels.backend import remove_backend

        remove_backend(name)
        del loaded.backends[name]


@lru_cache(maxsize=1)
def _loaded() -> _Loaded:
    pm = pluggy.PluginManager("hfadapt")
    pm.add_hookspecs(hookspecs)
    if os.environ.get("HFADAPT_TRACE_PLUGINS", "") == "1":
        pm.trace.root.setwriter(lambda text: sys.stderr.write(text))
        pm.enable_tracing()
    for name in _names(os.environ.get("HFADAPT_BLOCK_PLUGINS", "")):
        pm.set_blocked(name)
    records: list[PluginRecord] = []
    from . import __version__

    for name in BUILTIN_PLUGINS:
        record = PluginRecord(name, "hfadapt", __version__)
        records.append(record)
        _register(pm, record, None if pm.is_blocked(name) else importlib.import_module(name))
    for name, module in _ADDED.items():
        record = PluginRecord(name, "this process")
        records.append(record)
        _register(pm, record, module)
    only = os.environ.get("HFADAPT_PLUGINS")
    selected = None if only is None else _names(only)
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        records.append(_load_entry_point(pm, entry, selected))
    loaded = _Loaded(pm, records)
    _fill_registries(loaded)
    return loaded


def _names(listed: str) -> set[str]:
    return {part.strip() for part in listed.split(",") if part.strip()}


def register(module: ModuleType | Any, name: str | None = None) -> None:
    """Add a plugin that no entry point names: one written in a notebook, a script or a test.

    Args:
        module: Whatever has functions marked with ``hookimpl``: a module, or an object.
        name: By default the module's own.
    """
    _ADDED[name or getattr(module, "__name__", type(module).__name__)] = module
    reload()


def unregister(name: str) -> None:
    """Take out a plugin that ``register`` added; the name of one that is not there is no error."""
    _ADDED.pop(name, None)
    reload()


def reload() -> None:
    """Forget what was loaded; the next look-up loads again (after an install, or in tests)."""
    if _loaded.cache_info().currsize:
        _remove_backends(_loaded())
    _loaded.cache_clear()


def manager() -> pluggy.PluginManager:
    """Return the plugin manager with every plugin loaded."""
    return _loaded().manager


def report() -> list[PluginRecord]:
    """Return what became of every plugin, built-in ones first."""
    return list(_loaded().records)


def methods() -> Registry:
    """Return the registry of adaptation methods and presets."""
    return _loaded().registries["register_methods"]


def architectures() -> Registry:
    """Return the registry of architecture maps by ``model_type``."""
    return _loaded().registries["register_architectures"]


def mixing_strategies() -> Registry:
    """Return the registry of task-mixing strategies."""
    return _loaded().registries["register_mixing_strategies"]


def regularizers() -> Registry:
    """Return the registry of loss regularizers."""
    return _loaded().registries["register_regularizers"]


def backends() -> Registry:
    """Return the registry of additional op implementations."""
    return _loaded().registries["register_backends"]
