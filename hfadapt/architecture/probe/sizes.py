"""Sizes of an attention and the kind of a stack, where the linears' shapes do not say them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..linears import linear_sizes
from ..maps import AttentionMap

if TYPE_CHECKING:
    from torch import nn

    from .replay import Replay, Trace

_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "encoder_attention_heads")
_HEAD_DIMS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_head")


@dataclass(frozen=True)
class Heads:
    """Query heads, key-value heads, and the widths of a key's head and a value's; all 0 where there are no heads."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


def sizes_of(layer: nn.Module, attention: AttentionMap | None, replay: Replay) -> Heads | None:
    """The heads of an attention; None where what is known does not fit together.

    The attention module says how many heads there are or how wide one is; the shapes of its linears say the rest. Of a
    block, the call of the attention function says all, and without one it has no heads.
    """
    if attention is None:
        return Heads(0, 0, 0, 0)
    if attention.is_block:
        inside = {id(module) for module in layer.get_submodule(attention.module).modules()}
        core = next((core for core in replay.cores if id(core.module) in inside), None)
        return Heads(0, 0, 0, 0) if core is None else Heads(core.heads, core.kv_heads, core.head_dim, core.value_dim)
    sizes = _attention_sizes(layer, attention, replay.base)
    return None if sizes is None else Heads(*sizes, sizes[2])


def _attention_sizes(layer: nn.Module, attention: AttentionMap, trace: Trace) -> tuple[int, int, int] | None:
    """Query heads, key-value heads and width of a head, by the sizes of linears."""
    width = linear_sizes(trace[attention.output].module)[0]
    module = layer.get_submodule(attention.module)
    config = getattr(module, "config", None) or getattr(layer, "config", None)
    for owner in (module, config):
        head_dim = _number(owner, _HEAD_DIMS)
        heads = _number(owner, _HEADS)
        if head_dim is None and heads and width % heads == 0:
            head_dim = width // heads
        if head_dim and width % head_dim == 0:
            kv_heads = _kv_heads(attention, trace, width, head_dim)
            return None if kv_heads is None else (width // head_dim, kv_heads, head_dim)
    return None


def _kv_heads(attention: AttentionMap, trace: Trace, width: int, head_dim: int) -> int | None:
    if attention.key is not None:
        keys = linear_sizes(trace[attention.key].module)[1]
    else:
        keys = (linear_sizes(trace[attention.fused or ""].module)[1] - width) // 2
    return keys // head_dim if keys and keys % head_dim == 0 and width % keys == 0 else None


def _number(owner: object, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(owner, name, None), int)), None)


def stack_kind(root: nn.Module, path: str, causal: bool, crosses: bool) -> str:
    """The kind of a stack: towers of a model with several by their name, others by what they do."""
    config = getattr(root, "config", None)
    names = (getattr(config, "model_type", None) or "", path.split(".")[0])
    for word, kind in (("text_model", "text"), ("vision_model", "vision")):
        if any(name.endswith(word) for name in names):
            return kind
    return "decoder" if causal or crosses else "encoder"
