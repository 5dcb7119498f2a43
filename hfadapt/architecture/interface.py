"""Whether a model's attention can be replaced through transformers' own door, which differs between releases."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .maps import join

if TYPE_CHECKING:
    from torch import nn

    from .maps import AttentionMap, StackMap


def through_interface(model: nn.Module, stacks: Sequence[StackMap]) -> tuple[bool, dict[str, str]]:
    """Whether any stack's attention is a function of ``AttentionInterface``, and the stacks that compute it themselves.

    What stands in the place of attention without heads (a state space) has no such function, and is not asked.

    Returns:
        Whether there is one, and the paths of the others, and of other layers of a stack that has some, with the class
        of their attention.
    """
    own: dict[str, str] = {}
    through = False
    for stack in stacks:
        if not _may_change(model, stack.path):
            answers = {index: False for index in range(stack.num_layers) if _attentions(stack, index)}
        else:
            answers = {
                index: all(found) for index in range(stack.num_layers) if (found := _looked_up(model, stack, index))
            }
        through |= any(answers.values())
        if answers and not any(answers.values()):
            own[stack.path] = _class_of(model, stack, next(iter(answers)))
            continue
        own |= {stack.layer_paths[i]: _class_of(model, stack, i) for i, answer in answers.items() if not answer}
    return through, own


def _attentions(stack: StackMap, index: int) -> list[AttentionMap]:
    """The attentions with heads of one layer."""
    kind = stack.others.get(index, stack)
    if index in stack.left_out or not kind.num_heads:
        return []
    return [one for one in (kind.attention, kind.cross_attention) if one is not None]


def _looked_up(model: nn.Module, stack: StackMap, index: int) -> list[bool]:
    """Whether the attentions of a layer look their function up.

    The code of the module, or of one around it, says so by the name of transformers' table of functions; and
    transformers must agree that the function of this model may be changed, which older releases refuse ModernBERT.
    """
    return [_looks_up(model, stack.layer_paths[index], one.module) for one in _attentions(stack, index)]


def _class_of(model: nn.Module, stack: StackMap, index: int) -> str:
    return type(model.get_submodule(join(stack.layer_paths[index], _attentions(stack, index)[0].module))).__name__


def looks_up_attention(module: nn.Module) -> bool:
    """Whether the code of a module asks transformers' table for its attention function."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())


def _looks_up(model: nn.Module, layer: str, module: str) -> bool:
    while True:
        if looks_up_attention(model.get_submodule(join(layer, module))):
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
