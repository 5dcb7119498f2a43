"""How a table writes a stack in few words: sizes come from the config unless given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .maps import StackMap

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def stack_map(config: PretrainedConfig, path: str, **fields: Any) -> StackMap:
    """A stack whose sizes come from the config under transformers' usual names, unless given.

    Args:
        config: The model's config; the stack's own for a composed model.
        path: The ModuleList of layers, relative to the base model.
        fields: Fields of `StackMap`; `num_layers` may be given in place of `layer_paths`.
    """

    def size(name: str, *keys: str) -> int:
        if name in fields:
            return fields.pop(name)
        return next(value for key in keys if (value := getattr(config, key, None)) is not None)

    layers = size("num_layers", "num_hidden_layers")
    hidden = size("hidden_size", "hidden_size")
    heads = size("num_heads", "num_attention_heads")
    fields.setdefault("layer_paths", tuple(f"{path}.{index}" for index in range(layers)))
    fields.setdefault("num_kv_heads", getattr(config, "num_key_value_heads", None) or heads)
    fields.setdefault("head_dim", getattr(config, "head_dim", None) or hidden // heads)
    fields.setdefault("kind", "encoder")
    fields.setdefault("causal", False)
    ffn = size("ffn_size", "intermediate_size")
    return StackMap(path=path, hidden_size=hidden, num_heads=heads, ffn_size=ffn, **fields)
