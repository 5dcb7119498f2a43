"""Which parts of a model transformers or a user replaced by faster ones: the names of a conflict with adapters."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import nn

__all__ = ["WITHOUT", "is_class_own", "replaced"]

#: What to do about them.
WITHOUT = "the model loaded without use_kernels, kernel_config and register_patch_mapping"
_SHOWN = 3
#: Where transformers makes classes that hold several modules in one.
_FUSING = ("transformers.integrations.hub_kernels", "transformers.fusion_mapping")


def replaced(model: nn.Module) -> str:
    """Name the kernels and the classes that stand in the place of stock ones, or return ""."""
    found = list(dict.fromkeys(_in_place_of(model)))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def is_class_own(module: nn.Module, forward: Any) -> bool:
    """Say whether an instance ``forward`` is the class's own, as a module gets it whose kernel did not load."""
    bound = isinstance(forward, MethodType) and forward.__self__ is module
    return bound and forward.__func__ is type(module).forward


def _in_place_of(model: nn.Module) -> Iterator[str]:
    patches = {id(kind): name for name, kind in _patches().items()}
    for module in model.modules():
        kind = type(module)
        if id(kind) in patches:
            yield f"class {kind.__name__} in the place of {patches[id(kind)]} (register_patch_mapping)"
        elif kind.__module__ in _FUSING:
            yield f"class {kind.__name__}, which transformers made of several modules"
        forward = module.__dict__.get("forward")
        if isinstance(forward, MethodType) and forward.__self__ is module and not is_class_own(module, forward):
            kernel = f"{forward.__func__.__module__}.{forward.__func__.__qualname__}"
            yield f"{kernel} in the place of {kind.__name__}.forward"


def _patches() -> dict[str, type[nn.Module]]:
    try:
        from transformers.monkey_patching import get_patch_mapping
    except ImportError:  # a release before there were any
        return {}
    return get_patch_mapping()
