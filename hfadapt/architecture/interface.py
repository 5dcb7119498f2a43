"""Whether a model's attention can be replaced through transformers' own door, which differs between releases."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .maps import join

if TYPE_CHECKING:
    from torch import nn

    from .maps import StackMap


def uses_interface(model: nn.Module, stacks: Sequence[StackMap]) -> bool:
    """Whether the attention modules of all stacks look their function up in ``AttentionInterface``.

    What stands in the place of attention without heads (a state space) has no such function, and is not asked.

    The code of the module, or of one around it, says so by the name of transformers' table of functions; and
    transformers must agree that the function of this model may be changed, which older releases refuse ModernBERT.
    """
    found = [
        _looks_up(model, path, attention.module)
        for stack in stacks
        for path, kind in _kinds(stack)
        for attention in (kind.attention, kind.cross_attention)
        if attention is not None and kind.num_heads
    ]
    return bool(found) and all(found) and all(_may_change(model, stack.path) for stack in stacks)


def _kinds(stack: StackMap) -> list[tuple[str, StackMap]]:
    """One layer of each kind that a stack has, and the stack as such a layer has it."""
    usual = [i for i in range(stack.num_layers) if i not in stack.others and i not in stack.left_out]
    return [(stack.layer_paths[i], stack.others.get(i, stack)) for i in (*usual[-1:], *stack.others)]


def _looks_up(model: nn.Module, layer: str, module: str) -> bool:
    while True:
        forward = inspect.unwrap(type(model.get_submodule(join(layer, module))).forward)
        if "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ()):
            return True
        if not module:
            return False
        module = module.rpartition(".")[0]


def _may_change(model: nn.Module, path: str) -> bool:
    """What transformers itself says of the models around a stack; yes where a release has no such question."""
    parts = path.split(".")
    owners = (model.get_submodule(".".join(parts[:end])) for end in range(len(parts)))
    return all(getattr(owner, "_can_set_attn_implementation", lambda: True)() for owner in owners)
