"""Loading of plugins: the built-in ones and those that entry points name, with origin, blocking and tracing.

Nothing is loaded when ``hfadapt`` is imported; the first look-up in a registry loads everything once.
``HFADAPT_PLUGINS=a,b`` restricts which entry points load (empty: none), ``HFADAPT_BLOCK_PLUGINS=a,b`` blocks some,
built-in ones too; ``HFADAPT_STRICT_PLUGINS=1`` makes a failure fatal, ``HFADAPT_TRACE_PLUGINS=1`` prints every call.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from ..errors import PluginError
from . import hookspecs
from .checks import REGISTRIES
from .interrupts import noticed_interrupts
from .registry import Registry

__all__ = [
    "BUILTIN_PLUGINS",
    "ENTRY_POINT_GROUP",
    "PluginRecord",
    "add_commands",
    "call_each",
    "manager",
    "register",
    "registered",
    "reload",
    "report",
    "unregister",
]

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "hfadapt"
BUILTIN_PLUGINS = (
    "hfadapt_plugins.methods",
    "hfadapt_plugins.architectures",
    "hfadapt_plugins.formats",
    "hfadapt_plugins.mixing",
    "hfadapt_plugins.regularizers",
)
# Plugins of this process, by name; they survive a reload.
_ADDED: dict[str, Any] = {}


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

    @property
    def named_origin(self) -> str:
        """The name of the plugin, and the distribution that brings it."""
        return f"{self.name} ({self.origin} {self.version}".rstrip() + ")"


@dataclass
class _Loaded:
    manager: pluggy.PluginManager
    records: list[PluginRecord]
    registries: dict[str, Registry] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)


def _strict() -> bool:
    return os.environ.get("HFADAPT_STRICT_PLUGINS", "") == "1"


@contextlib.contextmanager
def _isolated(record: PluginRecord, doing: str, *, strict: bool = True) -> Iterator[None]:
    """Run code of a plugin: whatever it raises, it is named and skipped, and nothing of it gets any further.

    An exit and a KeyboardInterrupt of its own making are no exception. Ctrl-C of the user's stops the program, and what
    it interrupted is said.

    Args:
        record: Of the plugin.
        doing: What it does.
        strict: Strict loading makes a failure fatal.
    """
    with noticed_interrupts() as interrupts:
        try:
            yield
        except BaseException as error:
            if interrupts and isinstance(error, KeyboardInterrupt):
                logger.warning("interrupted while plugin %s %s", record.named_origin, doing)
                raise
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            _fail(record, "failed", f"it {doing} and raised {said}", strict=strict)


def _fail(record: PluginRecord, status: str, message: str, *, strict: bool = True) -> None:
    record.status, record.error = status, message
    record.traceback = traceback.format_exc() if sys.exc_info()[0] else ""
    error = PluginError(
        f"plugin {record.name!r} was skipped ({status})",
        where=f"{record.origin} {record.version}".rstrip(),
        got=message,
        allowed="a plugin whose hooks end without an error, and register what they may",
        try_="hfadapt plugins --verbose shows the traceback; HFADAPT_PLUGINS selects which plugins load",
    )
    if strict and _strict():
        raise error
    logger.warning(str(error))


def _register(pm: pluggy.PluginManager, record: PluginRecord, module: ModuleType | Any) -> None:
    """Register one plugin object; a misspelt or malformed hook makes it invalid."""
    if pm.is_blocked(record.name):
        record.status = "blocked"
        return
    if isinstance(module, type) or module is None:
        got = "a class, not an instance of it" if isinstance(module, type) else "None"
        _fail(record, "invalid", f"{got}; a plugin is a module or an object with functions marked hfadapt.hookimpl")
        return
    refused = ""
    with _isolated(record, "was asked for its hooks"):
        hash(module)  # pluggy keeps plugins in sets: one that cannot stand there would take all the others down
        try:
            pm.register(module, name=record.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            refused = str(error)
    if refused or record.status != "loaded":
        if pm.has_plugin(record.name):
            pm.unregister(name=record.name)
        if refused:
            _fail(record, "invalid", refused)
        return
    callers = pm.get_hookcallers(module) or []
    unknown = sorted(c.name for c in callers if c.spec is None)
    if unknown:
        pm.unregister(name=record.name)
        known = ", ".join(sorted(n for n in dir(pm.hook) if not n.startswith("_")))
        _fail(record, "invalid", f"unknown hooks {', '.join(unknown)} (known: {known})")
        return
    if not callers:
        pm.unregister(name=record.name)
        got = f"{type(module).__name__} {getattr(module, '__name__', repr(module))}"
        _fail(record, "invalid", f"no function marked hfadapt.hookimpl in it: {got}")
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
    with _isolated(record, "was imported"):
        module = entry.load()
    if record.status == "loaded":
        _register(pm, record, module)
    return record


def _fill_registries(loaded: _Loaded) -> None:
    """Call each plugin's register hooks one by one, so that a failure is named and undone for that plugin alone."""
    loaded.registries = {hook: Registry(kind, refuse) for hook, (kind, refuse) in REGISTRIES.items()}
    for record in loaded.records:
        if record.status != "loaded":
            continue
        origin = record.named_origin
        try:
            with _isolated(record, "registered what it has"):
                for hook, registry in loaded.registries.items():
                    registry._current_origin = origin
                    _alone(loaded, record, hook)(registry=registry)
                _add_backends(loaded, origin)
        finally:  # strict loading raises
            if record.status != "loaded":
                _remove_backends(loaded, origin)
                for registry in loaded.registries.values():
                    registry.remove_origin(origin)
                loaded.manager.unregister(name=record.name)


def _alone(loaded: _Loaded, record: PluginRecord, hook: str) -> Any:
    """Return the caller of one plugin's implementation of a hook."""
    plugin = loaded.manager.get_plugin(record.name)
    return loaded.manager.subset_hook_caller(hook, [p for p in loaded.manager.get_plugins() if p is not plugin])


def call_each(
    hook: str, check: Callable[[Any], str], *, strict: bool = True, **arguments: Any
) -> list[tuple[PluginRecord, Any]]:
    """Call a hook of every plugin by itself; one that raises, or returns what it should not, is named and left out.

    Args:
        hook: Its name.
        check: Says what may be returned where a result is wrong, else "".
        strict: Under strict loading a failure is fatal.
        arguments: Of the hook.

    Returns:
        The plugins with something to say, and what each returned.

    Raises:
        PluginError: one failed, under strict loading.
    """
    loaded = _loaded()
    results = []
    for record in loaded.records:
        if record.status != "loaded" or hook not in record.hooks:
            continue
        with _isolated(record, f"ran its hook {hook}", strict=strict):
            for result in _alone(loaded, record, hook)(**arguments):
                wrong = check(result)
                if wrong:
                    raise TypeError(f"returned {result!r}, allowed: {wrong}")
                results.append((record, result))
    return results


def add_commands(group: Any) -> dict[str, str]:
    """Let plugins add commands to a click group; those of a plugin that fails on the way are taken out again.

    Returns:
        The names of the commands, and the plugin that each is from.

    Raises:
        PluginError: one failed, under strict loading.
    """
    loaded = _loaded()
    origins: dict[str, str] = {}
    for record in loaded.records:
        if record.status != "loaded" or "register_commands" not in record.hooks:
            continue
        before = dict(group.commands)
        builtin = set(group.list_builtin()) if hasattr(group, "list_builtin") else set()
        try:
            with _isolated(record, "registered its commands"):
                _alone(loaded, record, "register_commands")(group=group)
                taken = [n for n, c in group.commands.items() if n in builtin or (n in before and before[n] is not c)]
                if taken:
                    whose = origins.get(taken[0], "hfadapt")
                    raise ValueError(f"a command {taken[0]!r} is there already, from {whose}")
                origins.update(dict.fromkeys(group.commands.keys() - before.keys(), record.named_origin))
        finally:
            if record.status != "loaded":
                group.commands.clear()
                group.commands.update(before)
    return origins


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
    from ..errors.version import __version__

    for name in BUILTIN_PLUGINS:
        record = PluginRecord(name, "hfadapt", __version__)
        records.append(record)
        if pm.is_blocked(name):
            record.status = "blocked"
        else:
            _register(pm, record, importlib.import_module(name))
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


def registered(hook: str) -> Registry:
    """Return what plugins registered by one hook."""
    return _loaded().registries[hook]
