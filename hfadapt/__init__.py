"""Parameter-efficient and multi-task adaptation of stock Hugging Face models.

Importing this package imports no torch: every name is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import after_import, moved, releases
from .errors.version import __version__ as __version__
from .multitask import auto

if TYPE_CHECKING:
    # what a type checker sees; __getattr__ below loads the same names on first use, ours and what plugins register
    from hfadapt_plugins.names import *  # noqa: F403  (whatever names plugins of ours register; a test holds the list)

    from .adapters.activate import activate as activate
    from .adapters.activate import active as active
    from .adapters.activate import compose as compose
    from .adapters.activate import set_adapter_drop as set_adapter_drop
    from .adapters.attach import Handle as Handle
    from .adapters.attach import attach as attach
    from .adapters.combine import combine as combine
    from .adapters.combine import compress as compress
    from .adapters.detach import detach as detach
    from .adapters.fit_weights import fit_weights as fit_weights
    from .adapters.folder_config import HFAdaptConfig as HFAdaptConfig
    from .adapters.folder_config import MultiTaskOutput as MultiTaskOutput
    from .adapters.foreign import export as export
    from .adapters.freeze import freeze as freeze
    from .adapters.freeze import trainable_parameters as trainable_parameters
    from .adapters.freeze import unfreeze as unfreeze
    from .adapters.merge import merge as merge
    from .adapters.own_copies import own_modules as own_modules
    from .adapters.router import add_router as add_router
    from .adapters.save import save as save
    from .adapters.save_hooks import slim_checkpoints as slim_checkpoints
    from .adapters.verify import verify as verify
    from .architecture import ArchitectureMap as ArchitectureMap
    from .architecture.probe import probe as probe
    from .data import MixingStrategy as MixingStrategy
    from .errors import HFAdaptError as HFAdaptError
    from .inference.engine import Engine as Engine
    from .method import Capabilities as Capabilities
    from .method import Delta as Delta
    from .method import Method as Method
    from .method import MethodConfig as MethodConfig
    from .method import MethodPreset as MethodPreset
    from .method import Place as Place
    from .method import Weights as Weights
    from .method import select_layers as select_layers
    from .method.site import Site as Site
    from .multitask.heads import Classification as Classification
    from .multitask.heads import Head as Head
    from .multitask.heads import MultiLabel as MultiLabel
    from .multitask.heads import OwnHead as OwnHead
    from .multitask.heads import Regression as Regression
    from .multitask.heads import Span as Span
    from .multitask.heads import TokenClassification as TokenClassification
    from .multitask.load import load as load
    from .multitask.model import MultiTaskModel as MultiTaskModel
    from .multitask.task import Task as Task
    from .plugins.hookspecs import hookimpl as hookimpl
    from .routing import Arrow as Arrow
    from .routing import Average as Average
    from .routing import Fuse as Fuse
    from .routing import Parallel as Parallel
    from .routing import Router as Router
    from .routing import Rows as Rows
    from .routing import Stack as Stack
    from .runtime.attachment import Adapter as Adapter
    from .runtime.attachment import attachment as attachment
    from .runtime.attachment import parameters_of as parameters_of
    from .runtime.attention import AttentionCall as AttentionCall
    from .runtime.attention import AttentionDelta as AttentionDelta
    from .runtime.packing import pack as pack
    from .runtime.packing import unpack as unpack
    from .training import EpochSync as EpochSync
    from .training import IdleTaskGuard as IdleTaskGuard
    from .training import RobustAdapterDrop as RobustAdapterDrop
    from .training import TaskEarlyStopping as TaskEarlyStopping
    from .training import TaskMixture as TaskMixture
    from .training import task_optimizer as task_optimizer
    from .training.regularizers import Regularizer as Regularizer
    from .training.regularizers import regularize as regularize

_NAMES = {
    "Adapter": "runtime.attachment",
    "ArchitectureMap": "architecture",
    "Arrow": "routing",
    "AttentionCall": "runtime.attention",
    "AttentionDelta": "runtime.attention",
    "Average": "routing",
    "Capabilities": "method",
    "Classification": "multitask.heads",
    "Delta": "method",
    "Engine": "inference.engine",
    "EpochSync": "training",
    "Fuse": "routing",
    "HFAdaptConfig": "adapters.folder_config",
    "HFAdaptError": "errors",
    "Handle": "adapters.attach",
    "Head": "multitask.heads",
    "IdleTaskGuard": "training",
    "Method": "method",
    "MethodConfig": "method",
    "MethodPreset": "method",
    "MixingStrategy": "data",
    "MultiLabel": "multitask.heads",
    "MultiTaskModel": "multitask.model",
    "MultiTaskOutput": "adapters.folder_config",
    "OwnHead": "multitask.heads",
    "Parallel": "routing",
    "Place": "method",
    "Regression": "multitask.heads",
    "Regularizer": "training.regularizers",
    "RobustAdapterDrop": "training",
    "Router": "routing",
    "Rows": "routing",
    "Site": "method.site",
    "Span": "multitask.heads",
    "Stack": "routing",
    "Task": "multitask.task",
    "TaskEarlyStopping": "training",
    "TaskMixture": "training",
    "TokenClassification": "multitask.heads",
    "Weights": "method",
    "activate": "adapters.activate",
    "active": "adapters.activate",
    "add_router": "adapters.router",
    "attach": "adapters.attach",
    "attachment": "runtime.attachment",
    "combine": "adapters.combine",
    "compose": "adapters.activate",
    "compress": "adapters.combine",
    "detach": "adapters.detach",
    "export": "adapters.foreign",
    "fit_weights": "adapters.fit_weights",
    "freeze": "adapters.freeze",
    "hookimpl": "plugins.hookspecs",
    "load": "multitask.load",
    "merge": "adapters.merge",
    "own_modules": "adapters.own_copies",
    "pack": "runtime.packing",
    "parameters_of": "runtime.attachment",
    "probe": "architecture.probe",
    "regularize": "training.regularizers",
    "save": "adapters.save",
    "select_layers": "method",
    "set_adapter_drop": "adapters.activate",
    "slim_checkpoints": "adapters.save_hooks",
    "task_optimizer": "training",
    "trainable_parameters": "adapters.freeze",
    "unfreeze": "adapters.freeze",
    "unpack": "runtime.packing",
    "verify": "adapters.verify",
}
__all__ = ["__version__", *_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]

# so that names of modules that users and pickles may hold say where these stand now, or still lead there
moved.install()
# so that AutoModel.from_pretrained knows the folders that MultiTaskModel.save_pretrained writes; imports nothing heavy
auto.install()
# so that pipeline("hfadapt", model=folder) answers texts
after_import.call("transformers.pipelines", f"{__name__}.inference.pipeline:register")
releases.say_if_transformers_is_newer()


def _load(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'hfadapt' has no attribute {name!r}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    else:
        try:
            return importlib.import_module(f".{name}", __name__)
        except moved.MovedModuleError as error:
            raise AttributeError(str(error)) from None
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
        value = _from_plugins(name)
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # for whom a name that stands nowhere above is a mistake
    __getattr__ = _load


def _from_plugins(name: str) -> Any:
    """Find a config class, preset or strategy that a plugin registered, by its Python name (``hfadapt.PAL``)."""
    names = _plugin_names()
    if name in names:
        registry, entry = names[name]
        found = _exports_of(registry[entry])
        if name in found:
            return found[name]
    from .errors import did_you_mean

    near = did_you_mean(name, [*_NAMES, *names])
    raise AttributeError(f"module 'hfadapt' has no attribute {name!r}. {near}".strip())


def _plugin_names() -> dict[str, tuple[Any, str]]:
    """Where what plugins registered is found by Python name; where names clash, methods come first."""
    from . import plugins

    registries = (plugins.regularizers(), plugins.mixing_strategies(), plugins.formats(), plugins.methods())
    return {
        name: (registry, entry)
        for registry in registries
        for entry in registry
        for name in registry.exports(entry, _exports_of)
    }


def _exports_of(entry: Any) -> dict[str, Any]:
    """What one thing that a plugin registered brings, by Python name."""
    exports = dict(getattr(entry, "exports", {}))
    for one in (getattr(entry, "config_class", None), entry if isinstance(entry, type) else None):
        if one is not None:
            exports[one.__name__] = one
    if getattr(entry, "export", ""):
        exports[entry.export] = entry.build
    return exports


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_plugin_names()})
