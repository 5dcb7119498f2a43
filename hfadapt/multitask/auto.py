"""Makes ``AutoModel.from_pretrained(folder)`` know hfadapt's folders, without importing transformers early.

``import hfadapt`` must stay cheap, and ``AutoModel`` may be imported before or after it. So the registration is done at
once when transformers' auto classes are loaded already, and otherwise right after they are.
"""

from __future__ import annotations

import importlib
import sys

from ..errors import after_import

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


def install() -> None:
    """Register now, or as soon as transformers' auto classes are imported."""
    after_import.call(_MODULE, f"{__name__}:register")
