"""AdapterHub's ``adapters`` in terms of hfadapt: its configs, and the names of its weights.

`configs` turns an ``adapter_config`` into ours. ``mh_adapter``, ``cross_adapter`` and ``output_adapter`` choose the
sub-layers of a bottleneck; ``reduction_factor``, ``non_linearity``, ``scaling``, ``is_parallel``, ``use_gating`` and
the norm options keep their names; ``inv_adapter`` adds invertible adapters; ``architecture`` ``lora``,
``prefix_tuning`` and ``union`` are the other kinds. ``leave_out`` becomes ``layers``. Initial values are of no
interest, all weights are given.

`fill` copies weights. A prefix is pooled at the first attention and named ``self_prefix`` (the decoder's own, or an
encoder-only model's), ``encoder_prefix`` and ``cross_prefix``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from golden_files import Filler
from torch import Tensor
from transformers import PreTrainedModel

import hfadapt
from hfadapt.runtime.attachment import deltas_of
from hfadapt_plugins.methods.bottleneck import Bottleneck, LayerNorms
from hfadapt_plugins.methods.fusion.adding import fusion_layers

_ROLES = {"q": "query", "k": "key", "v": "value"}
_PLACES = {"attention": "mh_adapter", "cross": "cross_adapter", "ffn": "output_adapter"}
_BOTTLENECK = {
    "up": "adapter_up.weight",
    "up_bias": "adapter_up.bias",
    "scale": "scaling",
    "gate_weight": "gate.weight",
    "gate_bias": "gate.bias",
    "norm_before_weight": "adapter_norm_before.weight",
    "norm_before_bias": "adapter_norm_before.bias",
    "norm_after_weight": "adapter_norm_after.weight",
    "norm_after_bias": "adapter_norm_after.bias",
}
_LORA = {"lora_a": "lora_A", "lora_b": "lora_B", "gate_weight": "gate.weight", "gate_bias": "gate.bias"}


def configs(config: dict[str, Any], layers: int) -> tuple[hfadapt.MethodConfig, ...]:
    """Our configs for AdapterHub's.

    Args:
        config: What its ``adapter_config.json`` holds under ``config``.
        layers: Layers of the model, which ``leave_out`` counts; an encoder's and a decoder's numbers are not mapped.
    """
    kind = config.get("architecture")
    if kind == "union":
        return tuple(c for part in config["configs"] for c in configs(part, layers))
    out = config.get("leave_out") or ()
    assert all(index < layers for index in out), "leave_out in the decoder of an encoder-decoder model"
    chosen: Any = tuple(i for i in range(layers) if i not in out) if out else "all"
    made = {"lora": _lora, "prefix_tuning": _prefix, None: bottleneck}[kind](config)
    found: tuple[hfadapt.MethodConfig, ...] = (dataclasses.replace(made, layers=chosen),)
    if config.get("inv_adapter"):
        factor = config["inv_adapter_reduction_factor"]
        found += (hfadapt.Invertible(config["inv_adapter"], factor, config["non_linearity"]),)
    return found


def bottleneck(config: dict[str, Any]) -> Bottleneck:
    """Our config for a ``BnConfig``."""
    assert not config.get("phm_layer") and not config.get("stochastic_depth")
    norms = {f: config[f] for f in LayerNorms.__dataclass_fields__}
    if config["is_parallel"]:
        norms = {name: norms[name] for name in ("ln_before", "ln_after")}
    return hfadapt.Bottleneck(
        reduction_factor=config["reduction_factor"],
        non_linearity=config["non_linearity"],
        on=tuple(ours for ours, theirs in _PLACES.items() if config.get(theirs)),
        is_parallel=config["is_parallel"],
        scaling=config["scaling"],
        norms=LayerNorms(**norms),
        dropout=config["dropout"],
        use_gating="mean_padded" if config["use_gating"] else False,
    )


def _lora(config: dict[str, Any]) -> hfadapt.MethodConfig:
    assert config["composition_mode"] == "add" and not config.get("use_dora")
    targets = [_ROLES[m] for m in config["attn_matrices"]] if config["selfattn_lora"] else []
    targets += ["ffn_in"] if config["intermediate_lora"] else []
    targets += ["ffn_out"] if config["output_lora"] else []
    gated = config["use_gating"]
    # Its gate takes the place of alpha / r.
    alpha = config["r"] if gated else config["alpha"]
    return hfadapt.LoRA(config["r"], alpha, tuple(targets), config["dropout"], gate="mean_padded" if gated else "none")


def _prefix(config: dict[str, Any]) -> hfadapt.MethodConfig:
    assert config["non_linearity"] == "tanh" and (config["shared_gating"] or not config["use_gating"])
    return hfadapt.PrefixConfig(
        config["prefix_length"],
        "flat" if config["flat"] else "mlp",
        config["bottleneck_size"],
        attention=("self", "cross") if config["cross_prefix"] else ("self",),
        dropout=config["dropout"],
        gate="mean_padded" if config["use_gating"] else "none",
        stack="all" if config["encoder_prefix"] else "decoder",
    )


def owner_of(leaf: str) -> str:
    """The module that holds AdapterHub's bottleneck at one of our leaves."""
    parts = leaf.split(".")
    if "block" in parts:  # T5: encoder.block.L.layer.K
        return ".".join(parts[:5])
    return ".".join(parts[:3]) + (".attention.output" if "attention" in leaf else ".output")


def _bottleneck_key(leaf: str, name: str, parameter: str, ln_before: bool) -> str:
    down = {"down": "weight", "down_bias": "bias"}.get(parameter)
    # With a norm before it, the norm is the first module of the same list.
    end = f"adapter_down.{int(ln_before)}.{down}" if down else _BOTTLENECK[parameter]
    return f"{owner_of(leaf)}.adapters.{name}.{end}"


def _pool(keys: dict[str, Tensor], theirs: str, stack: str, cross: bool) -> str:
    """Where the prefix of one kind of attention is kept: AdapterHub saves it under every module that refers to it."""
    both = any(f".{theirs}.encoder_prefix." in key for key in keys)
    which = "cross" if cross else "encoder" if both and "encoder" in stack else "self"
    end = f".prefix_tunings.{theirs}.{which}_prefix."
    return next(key.partition(end)[0] + end for key in keys if end in key)


def fill(model: PreTrainedModel, name: str, weights: dict[str, Tensor], theirs: str = "", prefix: str = "") -> Filler:
    """Copy the weights of one adapter.

    Args:
        model: Has the adapter ``name``, from `configs`.
        name: Our name of it.
        weights: AdapterHub's, by name.
        theirs: AdapterHub's name of it.
        prefix: What stands before every name.
    """
    filler, theirs = Filler(weights), theirs or name
    for _, delta in deltas_of(model, name):
        site, config, inside = delta.site, delta.config(name), delta.adapters[name]
        if config.method == "prefix":
            _fill_prefix(filler, inside, config, site, theirs, prefix)
            continue
        for ours, parameter in inside.named_parameters():
            if config.method == "lora":
                filler.copy(parameter, f"{prefix}{site.leaf}.loras.{theirs}.{_LORA[ours]}")
            else:
                key = _bottleneck_key(site.leaf, theirs, ours, config.norms.ln_before)
                filler.copy(parameter, prefix + key)
    shared = getattr(model, "hfadapt_shared", {})
    for method, module in shared[name].items() if name in shared else ():
        if method == "prefix":
            for key, network in module.networks.items():
                pool = _pool(weights, theirs, key, key.endswith("_cross"))
                parts = {"embedding": "wte", "down": "control_trans.0", "up": "control_trans.2"}
                for ours, parameter in network.named_parameters():
                    head, _, rest = ours.partition(".")
                    filler.copy(parameter, f"{pool}{parts[head]}.{rest or 'weight'}")
        else:
            for ours, parameter in module.named_parameters():
                function, part, kind = ours.split(".")[-3:]
                place = {"inner": 0, "outer": 2}[part]
                filler.copy(parameter, f"{prefix}invertible_adapters.{theirs}.{function}.{place}.{kind}")
    return filler


def _fill_prefix(filler: Filler, inside: Any, config: Any, site: Any, theirs: str, prefix: str) -> None:
    if config.reparametrization == "flat":
        # Layers that are left out have no place in the table.
        number = site.layer if config.layers == "all" else config.layers.index(site.layer)
        pool = _pool(filler.tensors, theirs, site.stack, site.slot.startswith("cross"))
        for place, parameter in enumerate((inside.prefix_key, inside.prefix_value)):

            def pick(table: Tensor, place: int = 2 * number + place) -> Tensor:
                heads = table.view(config.num_virtual_tokens, -1, site.kv_heads, site.width)
                return heads[:, place].transpose(0, 1)

            filler.copy(parameter, f"{pool}control_trans", pick)
    if config.gate != "none":
        # A gate belongs to an attention of a layer, not to the pool.
        for part in ("weight", "bias"):
            key = f"{prefix}{site.leaf}.prefix_tuning.prefix_gates.{theirs}.{part}"
            filler.copy(getattr(inside, f"gate_{part}"), key)


def fill_fusion(
    model: PreTrainedModel, names: tuple[str, ...], weights: dict[str, Tensor], theirs: str = "", prefix: str = ""
) -> Filler:
    """Copy the weights of the fusion layers over ``names``; AdapterHub calls them by the names, comma between."""
    filler = Filler(weights)
    for path, layer in fusion_layers(model, hfadapt.Fuse(*names)).items():
        owner = owner_of(path.partition(".hfadapt.")[0])
        for key, parameter in layer.named_parameters():
            which, _, kind = key.partition("_")
            filler.copy(parameter, f"{prefix}{owner}.adapter_fusion_layer.{theirs or ','.join(names)}.{which}.{kind}")
    return filler


__all__ = ["bottleneck", "configs", "fill", "fill_fusion", "owner_of"]
