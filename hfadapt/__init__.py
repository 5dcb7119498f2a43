"""Parameter-efficient and multi-task adaptation of stock Hugging Face models.

Importing this package imports no torch: every name is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import auto

__version__ = "0.1.0"

_NAMES = {
    "Adapter": "state",
    "ArchitectureMap": "architecture",
    "AttentionCall": "attention",
    "AttentionDelta": "attention",
    "Average": "composition",
    "Capabilities": "method",
    "Classification": "heads",
    "Delta": "delta",
    "EpochSync": "training",
    "Fuse": "composition",
    "HFAdaptConfig": "multitask_config",
    "HFAdaptError": "errors",
    "Handle": "attaching",
    "Head": "heads",
    "IdleTaskGuard": "training",
    "Method": "method",
    "MethodConfig": "method",
    "MethodPreset": "method",
    "MixingStrategy": "data",
    "MultiLabel": "heads",
    "MultiTaskModel": "model",
    "MultiTaskOutput": "multitask_config",
    "OwnHead": "heads",
    "Parallel": "composition",
    "Place": "method",
    "Regression": "heads",
    "RobustAdapterDrop": "training",
    "Rows": "routing",
    "Site": "slots",
    "Span": "heads",
    "Stack": "composition",
    "Task": "tasks",
    "TaskMixture": "data",
    "TokenClassification": "heads",
    "Weights": "delta",
    "activate": "activation",
    "active": "activation",
    "attach": "attaching",
    "attachment": "state",
    "compose": "activation",
    "detach": "attaching",
    "freeze": "freezing",
    "hookimpl": "hookspecs",
    "load": "checkpoint",
    "merge": "merging",
    "pack": "inference.packing",
    "parameters_of": "state",
    "save": "checkpoint",
    "select_layers": "method",
    "set_adapter_drop": "activation",
    "trainable_parameters": "freezing",
    "unfreeze": "freezing",
    "unpack": "inference.packing",
    "verify": "verification",
}

__all__ = ["__version__", *_NAMES]

# so that AutoModel.from_pretrained knows the folders that MultiTaskModel.save_pretrained writes; imports nothing heavy
auto.install()


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'hfadapt' has no attribute {name!r}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    else:
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
        value = _from_plugins(name)
    globals()[name] = value
    return value


def _from_plugins(name: str) -> Any:
    """Find a config class, preset or strategy that a plugin registered, by its Python name (``hfadapt.PAL``)."""
    from . import plugins

    for entry in plugins.methods().values():
        if getattr(entry, "export", None) == name:
            return entry.build
        if getattr(getattr(entry, "config_class", None), "__name__", None) == name:
            return entry.config_class
        if name in getattr(entry, "exports", {}):
            return entry.exports[name]
    for registry in (plugins.mixing_strategies(), plugins.regularizers()):
        for entry in registry.values():
            if getattr(entry, "__name__", None) == name:
                return entry
    from .errors import did_you_mean

    known = [
        *_NAMES,
        *(getattr(e, "config_class", e).__name__ for e in plugins.methods().values() if hasattr(e, "config_class")),
    ]
    raise AttributeError(f"module 'hfadapt' has no attribute {name!r}. {did_you_mean(name, known)}".strip())


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
