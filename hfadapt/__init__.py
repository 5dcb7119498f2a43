"""Parameter-efficient and multi-task adaptation of stock Hugging Face models.

Importing this package imports no torch: every name is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import auto, releases

if TYPE_CHECKING:
    # what a type checker sees; __getattr__ below loads the same names on first use
    from .activation import activate as activate
    from .activation import active as active
    from .activation import compose as compose
    from .activation import set_adapter_drop as set_adapter_drop
    from .architecture import ArchitectureMap as ArchitectureMap
    from .attaching import Handle as Handle
    from .attaching import attach as attach
    from .attention import AttentionCall as AttentionCall
    from .attention import AttentionDelta as AttentionDelta
    from .checkpoint import load as load
    from .checkpoint import save as save
    from .composition import Average as Average
    from .composition import Fuse as Fuse
    from .composition import Parallel as Parallel
    from .composition import Stack as Stack
    from .data import MixingStrategy as MixingStrategy
    from .data import TaskMixture as TaskMixture
    from .delta import Delta as Delta
    from .delta import Weights as Weights
    from .detaching import detach as detach
    from .errors import HFAdaptError as HFAdaptError
    from .freezing import freeze as freeze
    from .freezing import trainable_parameters as trainable_parameters
    from .freezing import unfreeze as unfreeze
    from .heads import Classification as Classification
    from .heads import Head as Head
    from .heads import MultiLabel as MultiLabel
    from .heads import OwnHead as OwnHead
    from .heads import Regression as Regression
    from .heads import Span as Span
    from .heads import TokenClassification as TokenClassification
    from .hookspecs import hookimpl as hookimpl
    from .inference.packing import pack as pack
    from .inference.packing import unpack as unpack
    from .merging import merge as merge
    from .method import Capabilities as Capabilities
    from .method import Method as Method
    from .method import MethodConfig as MethodConfig
    from .method import MethodPreset as MethodPreset
    from .method import Place as Place
    from .method import select_layers as select_layers
    from .model import MultiTaskModel as MultiTaskModel
    from .multitask_config import HFAdaptConfig as HFAdaptConfig
    from .multitask_config import MultiTaskOutput as MultiTaskOutput
    from .own_copies import own_modules as own_modules
    from .routing import Rows as Rows
    from .saving import slim_checkpoints as slim_checkpoints
    from .slots import Site as Site
    from .state import Adapter as Adapter
    from .state import attachment as attachment
    from .state import parameters_of as parameters_of
    from .tasks import Task as Task
    from .training import EpochSync as EpochSync
    from .training import IdleTaskGuard as IdleTaskGuard
    from .training import RobustAdapterDrop as RobustAdapterDrop
    from .verification import verify as verify

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
    "detach": "detaching",
    "freeze": "freezing",
    "hookimpl": "hookspecs",
    "load": "checkpoint",
    "merge": "merging",
    "pack": "inference.packing",
    "own_modules": "own_copies",
    "parameters_of": "state",
    "save": "checkpoint",
    "select_layers": "method",
    "set_adapter_drop": "activation",
    "slim_checkpoints": "saving",
    "trainable_parameters": "freezing",
    "unfreeze": "freezing",
    "unpack": "inference.packing",
    "verify": "verification",
}

__all__ = [
    "Adapter",
    "ArchitectureMap",
    "AttentionCall",
    "AttentionDelta",
    "Average",
    "Capabilities",
    "Classification",
    "Delta",
    "EpochSync",
    "Fuse",
    "HFAdaptConfig",
    "HFAdaptError",
    "Handle",
    "Head",
    "IdleTaskGuard",
    "Method",
    "MethodConfig",
    "MethodPreset",
    "MixingStrategy",
    "MultiLabel",
    "MultiTaskModel",
    "MultiTaskOutput",
    "OwnHead",
    "Parallel",
    "Place",
    "Regression",
    "RobustAdapterDrop",
    "Rows",
    "Site",
    "Span",
    "Stack",
    "Task",
    "TaskMixture",
    "TokenClassification",
    "Weights",
    "__version__",
    "activate",
    "active",
    "attach",
    "attachment",
    "compose",
    "detach",
    "freeze",
    "hookimpl",
    "load",
    "merge",
    "own_modules",
    "pack",
    "parameters_of",
    "save",
    "select_layers",
    "set_adapter_drop",
    "slim_checkpoints",
    "trainable_parameters",
    "unfreeze",
    "unpack",
    "verify",
]

# so that AutoModel.from_pretrained knows the folders that MultiTaskModel.save_pretrained writes; imports nothing heavy
auto.install()
releases.say_if_transformers_is_newer()


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
    exports = _plugin_exports()
    if name in exports:
        return exports[name]
    from .errors import did_you_mean

    near = did_you_mean(name, [*_NAMES, *exports])
    raise AttributeError(f"module 'hfadapt' has no attribute {name!r}. {near}".strip())


def _plugin_exports() -> dict[str, Any]:
    """What plugins registered, by Python name; where names clash, methods come first."""
    from . import plugins

    exports: dict[str, Any] = {}
    for registry in (plugins.regularizers(), plugins.mixing_strategies()):
        exports |= {getattr(entry, "__name__", ""): entry for entry in registry.values()}
    for entry in plugins.methods().values():
        exports |= getattr(entry, "exports", {})
        config_class = getattr(entry, "config_class", None)
        if config_class is not None:
            exports[config_class.__name__] = config_class
        if getattr(entry, "export", None) is not None:
            exports[entry.export] = entry.build
    exports.pop("", None)
    return exports


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
