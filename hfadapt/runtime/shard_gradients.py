"""Gradients of zero within what FSDP2 gathers: its processes add up the gradients of a layer in one block.

Adapters without a row on one process, and layers that are dropped, get none from the ops. `take_part` at the model's
output is too late for a layer's parameters, which are freed when the layer returns: it is done there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..routing.context import current
from .leaf_hooks import Hook, add_hook
from .shards import gathering_modules
from .zero_gradients import take_part

__all__ = ["let_shards_take_part"]


class EveryGradient(Hook):
    """Gives each trainable parameter that a module gathered a gradient, before FSDP's own hook frees it."""

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if current() is None or not torch.is_grad_enabled():
            return None
        if isinstance(output, tuple):
            return (take_part(output[0], module.parameters(), always=True), *output[1:])
        return take_part(output, module.parameters(), always=True) if isinstance(output, Tensor) else None


def let_shards_take_part(model: nn.Module) -> None:
    """Put `EveryGradient` at each module that gathers parameters of its own; the model itself has `take_part`."""
    for module in gathering_modules(model):
        if module is not model:
            add_hook(module, EveryGradient())
