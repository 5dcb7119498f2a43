"""The registries: what plugins registered, by name. The first look-up loads the plugins."""

from __future__ import annotations

from .loading import REGISTRIES, registered
from .registry import Registry

__all__ = [
    "architectures",
    "backends",
    "formats",
    "heads",
    "methods",
    "metrics",
    "mixing_strategies",
    "registered_by",
    "regularizers",
]


def methods() -> Registry:
    """Return the registry of adaptation methods and presets."""
    return registered("register_methods")


def architectures() -> Registry:
    """Return the registry of architecture maps by ``model_type``."""
    return registered("register_architectures")


def mixing_strategies() -> Registry:
    """Return the registry of task-mixing strategies."""
    return registered("register_mixing_strategies")


def regularizers() -> Registry:
    """Return the registry of loss regularizers."""
    return registered("register_regularizers")


def metrics() -> Registry:
    """Return the registry of metrics beside hfadapt's own."""
    return registered("register_metrics")


def heads() -> Registry:
    """Return the registry of kinds of heads beside hfadapt's own."""
    return registered("register_heads")


def formats() -> Registry:
    """Return the registry of formats of other libraries' folders."""
    return registered("register_formats")


def backends() -> Registry:
    """Return the registry of additional op implementations."""
    return registered("register_backends")


def registered_by(origin: str) -> dict[str, list[str]]:
    """Return the names that one plugin registered, by what they are names of.

    Args:
        origin: The plugin's ``PluginRecord.named_origin``.
    """
    found = {}
    for hook in REGISTRIES:
        registry = registered(hook)
        names = sorted(name for name in registry if registry.origin(name) == origin)
        if names:
            found[hook.removeprefix("register_")] = names
    return found
