"""Whether a model's attention can be replaced through transformers' own door, which differs between releases."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfadapt.architecture.layer import join

if TYPE_CHECKING:
    from torch import nn

    from hfadapt.architecture.maps import StackMap


def uses_interface(model: nn.Module, stacks: Sequence[StackMap]) -> bool:
    """Whether the attention modules of all stacks look their function up in ``AttentionInterface``.

    The code of the module, or of one around it, says so by the name of transformers' table of functions.
    """
    return all(
        _looks_up(model, stack.layer_paths[-1], attention.module)
        for stack in stacks
        for attention in (stack.attention, stack.cross_attention)
        if attention is not None
    )


def _looks_up(model: nn.Module, layer: str, module: str) -> bool:
    while True:
        forward = inspect.unwrap(type(model.get_submodule(join(layer, module))).forward)
        if "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ()):
            return True
        if not module:
            return False
        module = module.rpartition(".")[0]
