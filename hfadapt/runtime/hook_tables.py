"""The one place that takes hooks out of torch's tables by what they are.

A copy of a model has its hooks and no handle with which torch would remove them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["remove_hooks", "remove_load_hooks", "replace_forward_hooks"]


def remove_hooks(module: nn.Module, wanted: Callable[[Any], bool]) -> None:
    """Remove the hooks of ``module``'s forward, before and behind it, of which ``wanted`` holds."""
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        table = getattr(module, name)
        for key in [key for key, hook in table.items() if wanted(hook)]:
            del table[key]
            for flags in (f"{name}_with_kwargs", f"{name}_always_called"):
                getattr(module, flags, {}).pop(key, None)


def replace_forward_hooks(model: nn.Module, other: Callable[[Any], Any]) -> None:
    """Put what ``other`` returns in the place of each hook behind a forward of ``model``, under the same id.

    The handle that its owner has still removes it.
    """
    for module in model.modules():
        for key, hook in module._forward_hooks.items():
            module._forward_hooks[key] = other(hook)


def remove_load_hooks(model: nn.Module, kind: type) -> None:
    """Remove the hooks of that kind that run before ``load_state_dict``."""
    hooks = model._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "hook", hook), kind)]:
        del hooks[key]
