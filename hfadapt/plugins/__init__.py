"""Plugins: the hooks that a plugin may implement, how plugins are found and loaded, and what they registered."""

from .hookspecs import hookimpl
from .loading import (
    BUILTIN_PLUGINS,
    ENTRY_POINT_GROUP,
    PluginRecord,
    manager,
    register,
    reload,
    report,
    unregister,
)
from .registered import (
    architectures,
    backends,
    formats,
    heads,
    methods,
    metrics,
    mixing_strategies,
    regularizers,
)
from .registry import Deferred, Registry

__all__ = [
    "BUILTIN_PLUGINS",
    "ENTRY_POINT_GROUP",
    "Deferred",
    "PluginRecord",
    "Registry",
    "architectures",
    "backends",
    "formats",
    "heads",
    "hookimpl",
    "manager",
    "methods",
    "metrics",
    "mixing_strategies",
    "register",
    "regularizers",
    "reload",
    "report",
    "unregister",
]
