"""Modules that stood elsewhere in an earlier version: the documented ones still load, the others say where they stand.

Pickles and ``torch.save`` of whole models hold the places of the classes in them, and such a file of version 0.1 names
modules that moved. What those classes hold has changed since, so that a file of theirs is refused and not half read.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import HFAdaptError

__all__ = ["MOVED", "PUBLIC", "MovedModuleError", "install", "where_now"]

_ROOT = "hfadapt"

#: Where modules of version 0.1 stand now; what is in a package of the left column is in the right one under its name.
MOVED = {
    "activation": "adapters.activate",
    "adapter_files": "adapters.files",
    "atomic": "adapters.atomic",
    "attaching": "adapters.attach",
    "attention": "runtime.attention",
    "auto": "multitask.auto",
    "base_identity": "adapters.base_identity",
    "call": "runtime.call",
    "checkpoint": "adapters.save",
    "checkpointing": "runtime.checkpointing",
    "choice": "routing.choice",
    "composition": "routing.composition",
    "config": "recipes.config",
    "data.mixture": "training.mixture",
    "data.rows": "data.datasets",
    "delta": "method.delta",
    "delta_proof": "adapters.delta_proof",
    "detaching": "adapters.detach",
    "embedding_hooks": "runtime.embedding_hooks",
    "example_inputs": "architecture.inputs",
    "freezing": "adapters.freeze",
    "fused_norm": "runtime.fused_norm",
    "generating": "runtime.generate",
    "growing": "runtime.parallel_hooks",
    "heads": "multitask.heads",
    "heads.fit": "multitask.fit_heads",
    "histories": "runtime.kv_history",
    "hooks": "runtime.leaf_hooks",
    "hookspecs": "plugins.hookspecs",
    "inference.packing": "runtime.packing",
    "inspect": "adapters.inspect",
    "interrupts": "plugins.interrupts",
    "known_fields": "method.fields",
    "limits": "errors.limits",
    "lost_column": "runtime.lost_column",
    "merging": "adapters.merge",
    "model": "multitask.model",
    "multitask_checkpoint": "multitask.save",
    "multitask_config": "adapters.folder_config",
    "names": "errors.names",
    "own_copies": "adapters.own_copies",
    "own_files": "adapters.own_files",
    "own_forward": "runtime.own_forward",
    "parallel": "runtime.parallel",
    "penalties": "runtime.loss_terms",
    "plugin_checks": "plugins.checks",
    "registry": "plugins.registry",
    "releases": "errors.releases",
    "report": "recipes.report",
    "report.bench": "cli.bench_plots",
    "report.claims": "cli.claims_table",
    "report.methods": "cli.method_table",
    "report.op_figures": "cli.op_figures",
    "restoring": "adapters.restore",
    "resuming": "adapters.resume",
    "root": "runtime.root_hooks",
    "run": "recipes",
    "run.answers": "inference.answers",
    "run.ended": "recipes.finished_arms",
    "run.main": "recipes.run",
    "run.predict": "inference.predict",
    "run.proof": "recipes.checks",
    "run.source": "adapters.model_source",
    "saved_tensors": "adapters.saved_tensors",
    "saving": "adapters.save_hooks",
    "shared_tables": "runtime.relative_positions",
    "sites": "method.sites",
    "slots": "runtime.slot",
    "state": "runtime.attachment",
    "steps": "routing.steps",
    "taking_part": "runtime.zero_gradients",
    "task_ids": "routing.task_ids",
    "tasks": "multitask.task",
    "training.agreement": "training.checks",
    "training.macro": "multitask.macro",
    "training.metrics": "multitask.metrics",
    "training.multitask": "multitask.compute_metrics",
    "verification": "adapters.verify",
    "watching": "runtime.watch",
}

#: Names that documents and plugins use: they are the modules of today. ``python -m hfadapt`` is one of them.
PUBLIC = {
    "__main__": "cli.__main__",
    "config": "recipes.config",
    "heads": "multitask.heads",
    "hookspecs": "plugins.hookspecs",
    "registry": "plugins.registry",
    "run": "recipes",
    "run.predict": "inference.predict",
    "sites": "method.sites",
}


class MovedModuleError(HFAdaptError, ModuleNotFoundError):
    """A module is asked for under a name that it no longer has."""


def where_now(module: str) -> str | None:
    """The place today of a module of an earlier version, both without ``hfadapt.``; None if it did not move."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        home = MOVED.get(".".join(parts[:count]))
        if home is not None:
            return ".".join([home, *parts[count:]])
    return None


class _SameModule:
    """Gives the module of today under an older name: a loader by its methods, as `after_import` has them."""

    def __init__(self, home: str) -> None:
        self._home = home

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._home)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import put the older name's there


class _Finder:
    """Finds modules of ``hfadapt`` by the names that they had."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, module = fullname.partition(".")
        if root != _ROOT or not module:
            return None
        if module == "__main__":  # run as a program: it needs the file, not the module
            program = importlib.util.find_spec(f"{_ROOT}.{PUBLIC[module]}")
            return program and importlib.util.spec_from_file_location(fullname, program.origin)
        public = PUBLIC.get(module)
        home = public or where_now(module)
        if home is None:
            return None
        if public or module.partition(".")[0] in PUBLIC:
            loader: Any = _SameModule(f"{_ROOT}.{home}")  # a loader by its methods
            return ModuleSpec(fullname, loader)
        error = MovedModuleError(
            f"{fullname} is {_ROOT}.{home} now",
            where="an import, or a pickle or torch.save of a whole model that an earlier version made",
            try_=f"import {_ROOT}.{home}; a pickle: load it with hfadapt 0.1, hfadapt.save(model, folder) there, "
            "and hfadapt.load(folder) here",
        )
        error.name = fullname
        raise error


def install() -> None:
    """Ask the finder before Python's own, once."""
    if not any(
        type(finder).__name__ == _Finder.__name__ and type(finder).__module__ == __name__ for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _Finder())
