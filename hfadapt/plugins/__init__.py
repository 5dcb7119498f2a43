"""Plugins: the hooks that a plugin may implement, how plugins are found and loaded, and what they registered."""

from .loading import (
    BUILTIN_PLUGINS,
    ENTRY_POINT_GROUP,
    PluginRecord,
    architectures,
    backends,
    manager,
    methods,
    mixing_strategies,
    register,
    regularizers,
    reload,
    report,
    unregister,
)

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
