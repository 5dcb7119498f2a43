"""What the unified view's code calls the weights that have other names here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from hfadapt import Delta
from hfadapt.runtime import deltas_of, shared_modules

__all__ = ["UNREAD", "Pair", "parameter_map"]

# New weights that the fork makes and never reads (they have no gradient there).
UNREAD = {
    "roberta": r"prompt_model\.(\w+_enc|\w+2|encoder_attn_\w+|decoder_cross_attn_\w+)\.|\.output\.ef_ffn_adapter\.",
    "mbart": r"\.ef_transform_layer_norm\.",
    "bart": r"(?!)",
}


@dataclass(frozen=True)
class Pair:
    """One of our parameters, and how its shape becomes the fork's."""

    parameter: nn.Parameter
    to_fork: Callable[[Tensor], Tensor]
    from_fork: Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def parameter_map(model: nn.Module, arch: str, name: str = "default") -> dict[str, Pair]:
    """The fork's name of each of our parameters."""
    found: dict[str, Pair] = {}
    for _, delta in deltas_of(model, name):
        weights, method = delta.own(name), delta.config(name).method
        start, words = _names(arch, delta, method)
        for key, parameter in weights.named_parameters():
            if key in ("prefix_key", "prefix_value"):
                which = "cross_attn" if delta.site.slot == "cross_core" else "self_attn"
                side = "encoder_attn" if "encoder" in delta.site.stack and arch != "roberta" else f"decoder_{which}"
                fork = f"prompt_model.{side}_{key.removeprefix('prefix_')}.{delta.site.layer}.weight"
                heads = parameter.shape[0]
                found[fork] = Pair(
                    parameter,
                    lambda t: t.transpose(0, 1).flatten(1),
                    lambda t, heads=heads: t.unflatten(1, (heads, -1)).transpose(0, 1),
                )
            else:
                found[f"{start}{words[key]}"] = Pair(parameter, _same, _same)
    for shared in shared_modules(model, name).values():
        for key, parameter in shared.named_parameters():
            found[_network_name(arch, key)] = Pair(parameter, _same, _same)
    return found


_ADAPTER = {
    "down": "down_proj.weight",
    "down_bias": "down_proj.bias",
    "up": "up_proj.weight",
    "up_bias": "up_proj.bias",
    "scale": "scale",
    "norm_before_weight": "adapter_layer_norm_before.weight",
    "norm_before_bias": "adapter_layer_norm_before.bias",
}
_LORA = {"lora_a": "ef_lora_A", "lora_b": "ef_lora_B"}
_NORM = {"norm_weight": "weight", "norm_bias": "bias"}


def _names(arch: str, delta: Delta, method: str) -> tuple[str, dict[str, str]]:
    site = delta.site
    layer = f"{site.stack}.{site.layer}."
    cross = site.slot.startswith("cross")
    attention = "attention.self." if arch == "roberta" else "encoder_attn." if cross else "self_attn."
    if method == "lora":
        return f"{site.leaf}.", _LORA
    if method == "prefix":
        return f"{layer}{attention}ef_transform_layer_norm.", _NORM
    if site.slot.startswith("ffn"):
        middle = "output." if arch == "roberta" and method == "bottleneck" else ""
        return f"{layer}{middle}ef_ffn_adapter.", _ADAPTER
    if arch == "roberta" and method == "bottleneck":
        attention = "attention.output."
    return f"{layer}{attention}ef_attn_adapter.", _ADAPTER


def _network_name(arch: str, key: str) -> str:
    _, network, rest = key.split(".", 2)
    kind = "2" if network.endswith("_cross") else "_enc" if "encoder" in network and arch != "roberta" else ""
    part = {
        "embedding": f"wte{kind}.weight",
        "down.weight": f"control_trans{kind}.0.weight",
        "down.bias": f"control_trans{kind}.0.bias",
        "up.weight": f"control_trans{kind}.2.weight",
        "up.bias": f"control_trans{kind}.2.bias",
    }
    return f"prompt_model.{part[rest]}"
