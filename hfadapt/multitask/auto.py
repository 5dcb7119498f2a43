"""Makes ``AutoModel.from_pretrained(folder)`` know hfadapt's folders, without importing transformers early.

``import hfadapt`` must stay cheap, and ``AutoModel`` may be imported before or after it. So the registration is done at
once when transformers' auto classes are loaded already, and otherwise right after they are.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["install", "register"]

_MODEL = f"{__package__}.model"
_DOORS = f"{__package__}.from_auto"
_MODULE = "transformers.models.auto.modeling_auto"


def register() -> None:
    """Register the config with ``AutoConfig``, and what opens a folder of ours with every ``AutoModel`` class."""
    module = sys.modules.get(_MODEL)
    if module is not None and not hasattr(module, "MultiTaskModel"):
        return  # it is being imported right now, and registers when it is done

    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    doors = importlib.import_module(_DOORS)  # by name: it needs the model, whose module imports this one
    config = doors.OfAuto.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto in list(vars(modeling_auto).values()):
        if isinstance(auto, type) and issubclass(auto, _BaseAutoModelClass) and auto._model_mapping is not None:
            auto.register(config, doors.door_for(auto), exist_ok=True)


class _AfterImport(MetaPathFinder, Loader):
    """Finds one module by the other finders and runs ``register`` once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                self._loader = spec.loader
                spec.loader = self
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
        register()


def install() -> None:
    """Register now, or as soon as transformers' auto classes are imported."""
    if _MODULE in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
