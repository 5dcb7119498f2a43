"""Whether a model's attention can be replaced through transformers' own door, which differs between releases."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .maps import join

if TYPE_CHECKING:
    from torch import nn

    from .maps import StackMap


def through_interface(model: nn.Module, stacks: Sequence[StackMap]) -> tuple[bool, dict[str, str]]:
    """Whether any stack's attention is a function of ``AttentionInterface``, and the stacks that compute it themselves.

    What stands in the place of attention without heads (a state space) has no such function, and is not asked.

    Returns:
        Whether there is one, and the paths of the others with the class of their attention.
    """
    own: dict[str, str] = {}
    through = False
    for stack in stacks:
        answer = _uses_interface(model, stack)
        through |= bool(answer)
        if answer is False:
            modules = (
                join(path, attention.module)
                for path, kind in _kinds(stack)
                for attention in (kind.attention, kind.cross_attention)
                if attention is not None
            )
            own[stack.path] = type(model.get_submodule(next(modules))).__name__
    return through, own


def _uses_interface(model: nn.Module, stack: StackMap) -> bool | None:
    """Whether all attention modules of a stack look their function up; None where it has none with heads.

    The code of the module, or of one around it, says so by the name of transformers' table of functions; and
    transformers must agree that the function of this model may be changed, which older releases refuse ModernBERT.
    """
    found = [
        _looks_up(model, path, attention.module)
        for path, kind in _kinds(stack)
        for attention in (kind.attention, kind.cross_attention)
        if attention is not None and kind.num_heads
    ]
    return all(found) and _may_change(model, stack.path) if found else None


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
    """What transformers itself says of the innermost model around a stack; yes where a release has no such question."""
    parts = path.split(".")
    owners = (model.get_submodule(".".join(parts[:end])) for end in reversed(range(len(parts))))
    asked = (getattr(owner, "_can_set_attn_implementation", None) for owner in owners)
    return next((may() for may in asked if may is not None), True)
