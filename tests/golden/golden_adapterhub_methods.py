"""LoRA, prefix tuning, MAM and fusion of AdapterHub in terms of hfadapt; see `golden_adapterhub` for bottlenecks.

A config with ``architecture`` ``lora``, ``prefix_tuning`` or ``union`` becomes ours with `configs`; `adapted` copies
the weights. Its prefix modules are pooled at the first attention of the encoder (or decoder) and named ``self_prefix``
(the decoder's own, or an encoder-only model's), ``encoder_prefix`` and ``cross_prefix``.
"""

from __future__ import annotations

from typing import Any

import golden_adapterhub as hub
import torch
from torch import Tensor
from transformers import PreTrainedModel

import hfadapt
from hfadapt.state import deltas_of

_ROLES = {"q": "query", "k": "key", "v": "value"}


def available() -> list[str]:
    """Goldens of these methods that are here."""
    kinds = ("lora_qv", "mam", "prefix_flat", "prefix_mlp")
    return sorted(p.stem for p in hub.DATA.glob("*.safetensors") if p.stem.split("_", 1)[1] in kinds)


def configs(config: dict[str, Any]) -> tuple[hfadapt.MethodConfig, ...]:
    """Return our configs for AdapterHub's."""
    kind = config.get("architecture")
    if kind == "union":
        return tuple(c for part in config["configs"] for c in configs(part))
    if kind == "lora":
        targets = [_ROLES[m] for m in config["attn_matrices"]] if config["selfattn_lora"] else []
        targets += ["ffn_in"] if config["intermediate_lora"] else []
        targets += ["ffn_out"] if config["output_lora"] else []
        gate = "mean_padded" if config["use_gating"] else "none"
        alpha = (
            config["r"] if config["use_gating"] else config["alpha"]
        )  # AdapterHub's gate takes the place of alpha / r
        return (hfadapt.LoRA(config["r"], alpha, tuple(targets), config["dropout"], gate=gate),)
    if kind == "prefix_tuning":
        return (
            hfadapt.PrefixConfig(
                config["prefix_length"],
                "flat" if config["flat"] else "mlp",
                config["bottleneck_size"],
                dropout=config["dropout"],
                gate="mean_padded" if config["use_gating"] else "none",
            ),
        )
    return (hub.bottleneck(config),)


def _fill(target: torch.nn.Parameter, tensors: dict[str, Tensor], key: str, used: set[str]) -> None:
    target.data.copy_(tensors[key].view(target.shape))
    used.add(key)


def _prefix_owner(tensors: dict[str, Tensor], name: str, stack: str, slot: str, arch: str) -> str:
    which = "cross" if slot.startswith("cross") else "encoder" if arch == "t5" and "encoder" in stack else "self"
    end = f".prefix_tunings.{name}.{which}_prefix."
    return next(k.partition(end)[0] + end for k in tensors if k.startswith("new.") and end in k)


def fill(model: PreTrainedModel, golden: hub.Golden, name: str) -> set[str]:
    """Copy the weights of adapter ``name``; return the golden's keys that were used."""
    used: set[str] = set()
    tensors = golden.tensors
    for path, delta in deltas_of(model, name):
        site, config, inside = delta.site, delta.config(name), delta.adapters[name]
        if config.method == "lora":
            for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
                _fill(getattr(inside, ours), tensors, f"new.{site.leaf}.loras.{name}.{theirs}", used)
        elif config.method == "bottleneck":
            for key, parameter in inside.named_parameters():
                _fill(parameter, tensors, f"new.{hub.reference_name(f'{path}.{key}', name)}", used)
        elif config.reparametrization == "flat":
            key = _prefix_owner(tensors, name, site.stack, site.slot, golden.arch) + "control_trans"
            length, heads, size = config.num_virtual_tokens, site.kv_heads, site.width
            table = tensors[key].view(length, 2 * hub.LAYERS, heads, size).permute(1, 2, 0, 3)
            inside.prefix_key.data.copy_(table[2 * site.layer])
            inside.prefix_value.data.copy_(table[2 * site.layer + 1])
            used.add(key)
    shared = getattr(model, "hfadapt_shared", {})
    if name in shared:
        for key, network in shared[name]["prefix"].networks.items():
            slot = "cross_core" if key.endswith("_cross") else "attention_core"
            owner = _prefix_owner(tensors, name, key, slot, golden.arch)
            parts = {"embedding": "wte", "down": "control_trans.0", "up": "control_trans.2"}
            for ours, parameter in network.named_parameters():
                head, _, rest = ours.partition(".")
                _fill(parameter, tensors, f"{owner}{parts[head]}.{rest or 'weight'}", used)
    return used


def adapted(golden: hub.Golden, **more: Any) -> PreTrainedModel:
    """Return the base with the adapters ``a`` and ``b``; every weight of the golden is used."""
    model = hub.base(golden.arch, **more)
    hfadapt.attach(model, configs(golden.config), names=hub.NAMES)
    used = set().union(*(fill(model, golden, name) for name in hub.NAMES))
    unused = [k for k in golden.tensors if k.startswith("new.") and k not in used]
    assert not unused, unused
    return model


def add_fusion(model: PreTrainedModel, golden: hub.Golden) -> None:
    """Add the golden's fusion layer over ``a`` and ``b`` and copy its weights."""
    hfadapt.add_fusion(model, hub.NAMES)
    from hfadapt_plugins.methods.fusion.adding import fusion_layers

    used = set()
    for path, layer in fusion_layers(model).items():
        leaf = path.partition(".hfadapt.")[0]
        owner = hub.reference_name(f"{leaf}.hfadapt.down", "a").partition(".adapters.")[0]
        for key, parameter in layer.named_parameters():
            which, _, kind = key.partition("_")
            name = f"fusion.{owner}.adapter_fusion_layer.{','.join(hub.NAMES)}.{which}.{kind}"
            _fill(parameter, golden.tensors, name, used)
    unused = [k for k in golden.tensors if k.startswith("fusion.") and k not in used]
    assert not unused, unused
