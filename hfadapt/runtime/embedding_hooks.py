"""Lets back-propagation stop at the lowest delta under activation checkpointing, and undoes it.

transformers registers a hook that makes the embeddings' output require a gradient together with activation
checkpointing, whose reentrant form needs it. The other form does not, and with it back-propagation goes through every
layer, those below the lowest delta too (AdapterDrop would save nothing).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..routing.context import current
from .hook_tables import replace_forward_hooks

__all__ = ["WithoutAdapters", "give_back", "let_backward_stop"]

_THEIRS = "PreTrainedModel.enable_input_require_grads."


class WithoutAdapters:
    """A hook that only runs where no adapter does.

    It stands under the same id as the hook in it, so that the handle with which transformers removes that still does.

    Args:
        hook: The hook in it.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return None if current() is not None else self.hook(module, args, output)


def let_backward_stop(model: nn.Module) -> None:
    """Keep transformers' hooks on embeddings from running while adapters do."""
    replace_forward_hooks(
        model,
        lambda hook: WithoutAdapters(hook) if getattr(hook, "__qualname__", "").startswith(_THEIRS) else hook,
    )


def give_back(model: nn.Module) -> None:
    """Put the hooks back as they were."""
    replace_forward_hooks(model, lambda hook: hook.hook if isinstance(hook, WithoutAdapters) else hook)
