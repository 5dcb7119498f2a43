"""Writing AdapterHub's folders: the configs and the names that adapters 1.3.0 gives, for ``load_adapter`` to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from hfadapt import attachment, select_layers
from hfadapt.adapters.formats import (
    CONFIG_FILE,
    arch_of,
    atomic_folder,
    own_tensors,
    refuse_foreign,
    refuse_own,
    require_loadable,
)
from hfadapt.architecture import LayerMap
from hfadapt.errors import AttachError
from hfadapt.runtime import deltas_of, shared_modules

from ...methods.bottleneck import Bottleneck
from ...methods.invertible import Invertible
from ...methods.lora import LoRA
from ...methods.mtl_lora import MTLLoRA
from ...methods.parallel import ParallelConfig
from ...methods.prefix import PrefixConfig
from .bottleneck import ENDS
from .folder import base_path
from .layers import numbers
from .lora import KEYS
from .mtl_lora import mtl_lora_fields, mtl_lora_keys

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap, MethodConfig

__all__ = ["write_adapter"]

_VERSION = "adapters.1.3.0"
_ACTIVATIONS = {"gelu_tanh": "gelu_new", "silu": "swish"}
_FLAGS = {"attention": "mh_adapter", "cross": "cross_adapter", "ffn": "output_adapter"}
_BOTTLENECK = {
    "cross_adapter": False,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "learn_phm": True,
    "mh_adapter": False,
    "output_adapter": False,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
}
# Where each family's layer keeps the bottleneck adapters of its sub-layers; others have the names of most.
_OWNERS = {
    "bert": {"attention": "attention.output", "ffn": "output"},
    "t5": {"attention": "layer.0", "cross": "layer.1", "ffn": "layer.{last}"},
}
_FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "bert-generation", "deberta", "deberta-v2"), "bert"),
    **dict.fromkeys(("t5", "mt5"), "t5"),
}
_WRITTEN = ("bert", "roberta", "xlm-roberta", "electra", "t5", "mt5", "distilbert", "bart", "mbart", "gpt2", "llama")


def write_adapter(model: PreTrainedModel, folder: Path, name: str | None) -> None:
    """Write an adapter, and its head under the names that the model's class gives it.

    Args:
        model: With the adapter.
        folder: Made if it is missing.
        name: Of the adapter; may be left out where there is one.

    Raises:
        AttachError: there is no such adapter, or AdapterHub has nothing that computes it.
        CheckpointError: the folder holds what hfadapt or another library saved, or cannot be written.
    """
    state = attachment(model)
    if name is None and len(state.names) != 1:
        raise AttachError(
            "which adapter?",
            where="the folder in AdapterHub's format",
            got="no name",
            allowed=", ".join(state.names),
            try_=f"name={state.names[0]!r}" if state.names else "hfadapt.attach(model, 'seq_bn') first",
        )
    adapter = state.require(name or state.names[0])
    arch = arch_of(model)
    plain = [config for config in adapter.configs if not isinstance(config, Invertible)]
    configs = [_config(config, adapter.name, model, arch) for config in plain]
    for config in adapter.configs:
        if isinstance(config, Invertible):
            _invertible(config, configs, adapter.name)
    kinds = [one.get("architecture") for one in configs]
    if not configs or len(set(kinds)) != len(kinds) or adapter.modules or arch.model_type not in _WRITTEN:
        got = f"{arch.model_type}, {', '.join(adapter.modules) or ' + '.join(map(str, adapter.configs))}"
        raise _unsaid("this adapter", adapter.name, got)
    common = {
        "hidden_size": arch.stacks[0].hidden_size,
        "model_class": type(model).__name__,
        "model_name": getattr(model.config, "_name_or_path", "") or None,
        "model_type": arch.model_type,
        "version": _VERSION,
    }
    union = {"architecture": "union", "configs": configs}
    data = {**common, "config": configs[0] if len(configs) == 1 else union, "name": adapter.name}
    tensors = _tensors(model, adapter.name, arch)
    head = {f"{path}.{key}": tensor for path, key, tensor in own_tensors(model, adapter.name)}
    require_loadable(model, folder, adapter.name)
    refuse_own(folder)
    refuse_foreign(folder)
    with atomic_folder(folder) as temporary:
        _write(temporary, CONFIG_FILE, data, "adapter.safetensors", tensors)
        if head:
            labels = getattr(model.config, "label2id", None)
            described = {**common, "config": None, "name": None, "label2id": labels, "num_labels": len(labels or ())}
            _write(temporary, "head_config.json", described, "model_head.safetensors", head)


def _write(folder: Path, config: str, data: Mapping[str, Any], weights: str, tensors: Mapping[str, Tensor]) -> None:
    (folder / config).write_text(json.dumps(data, indent=2, sort_keys=True), encoding="utf-8")
    packed = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    save_file(packed, str(folder / weights))


def _unsaid(what: str, name: str, got: object) -> AttachError:
    return AttachError(
        f"AdapterHub's folders cannot say {what}",
        where=f"adapter {name!r}",
        got=got,
        allowed=f"bottleneck and invertible adapters, prefixes, LoRA, MTL-LoRA, on {', '.join(_WRITTEN)}",
        try_="hfadapt.save(model, folder) writes any adapter",
    )


def _config(config: MethodConfig, name: str, model: PreTrainedModel, arch: ArchitectureMap) -> dict[str, Any]:
    if isinstance(config, (Bottleneck, ParallelConfig)):
        return {**_bottleneck(config, name, arch), "leave_out": _left_out(config, arch)}
    if isinstance(config, LoRA):
        return _lora(config, name, model, arch)
    if isinstance(config, MTLLoRA):
        if config.task_matrix != "diagonal":
            raise _unsaid("matrices of tasks that are no diagonals (task_matrix='diagonal' has these)", name, config)
        return {**_lora(config.as_lora(), name, model, arch), **mtl_lora_fields(config)}
    if isinstance(config, PrefixConfig):
        return {**_prefix(config, name, arch), "leave_out": _left_out(config, arch)}
    raise _unsaid("this adapter", name, config)


def _left_out(config: MethodConfig, arch: ArchitectureMap) -> list[int]:
    chosen = {(layer.stack.path, layer.index) for layer in select_layers(config, arch)}
    return sorted(number for place, number in numbers(arch).items() if place not in chosen)


def _bottleneck(config: Bottleneck | ParallelConfig, name: str, arch: ArchitectureMap) -> dict[str, Any]:
    width = arch.stacks[0].hidden_size
    common = {**_BOTTLENECK, "dropout": config.dropout, "non_linearity": _activation(config.non_linearity)}
    if isinstance(config, ParallelConfig):
        if config.sublayers != ("ffn",) or not config.bias:
            raise _unsaid("this parallel adapter", name, config)
        places, scaling, size, gate = ("ffn",), config.scale, config.r, False
        norms = {"ln_before": config.norm_before, "ln_after": False, "adapter_residual_before_ln": False}
        more = {"is_parallel": True, "original_ln_before": False, "original_ln_after": True, "residual_before_ln": True}
    else:
        if config.share or config.use_gating is True:
            raise _unsaid("layers that share an adapter, or a gate over real tokens alone", name, config)
        places, scaling, size = config.on, config.scaling, config.size_for(width)
        gate, own = bool(config.use_gating), config.norms
        norms = {key: getattr(own, key) for key in ("ln_before", "ln_after", "adapter_residual_before_ln")}
        more = {key: getattr(own, key) for key in ("original_ln_before", "original_ln_after", "residual_before_ln")}
        more["is_parallel"] = config.is_parallel
    scaling = float(scaling) if isinstance(scaling, (int, float)) else scaling
    return {
        **common, **norms, **more, **{_FLAGS[place]: True for place in places},
        "reduction_factor": _factor(width, size), "scaling": scaling, "use_gating": gate,
    }  # fmt: skip


def _factor(width: int, size: int) -> float:
    """Return a factor by which the width comes out, as a whole number where there is one."""
    exact = width / size
    whole = round(exact)
    factor = whole if int(width // whole) == size else exact
    # int(width // (width / size)) may come out one too small
    return factor if int(width // factor) == size else width / (size + 1e-6)


def _activation(name: str) -> str:
    from hfadapt_kernels import get_activation

    found = get_activation(name).name
    return _ACTIVATIONS.get(found, found)


def _invertible(config: Invertible, configs: list[dict[str, Any]], name: str) -> None:
    here = next((one for one in configs if "phm_layer" in one), None)
    if here is None or config.block != "nice" or here["non_linearity"] != _activation(config.non_linearity):
        raise _unsaid("this invertible adapter", name, config)
    here.update(inv_adapter=config.block, inv_adapter_reduction_factor=config.reduction_factor)


def _lora(config: LoRA, name: str, model: PreTrainedModel, arch: ArchitectureMap) -> dict[str, Any]:
    if config.use_rslora or config.bias or config.dora or config.gate not in ("none", "mean_padded"):
        raise _unsaid("rslora, a bias of B, DoRA, or a gate over real tokens alone", name, config)
    leaves = {
        delta.site.leaf for _, delta in deltas_of(model, name) if delta.config(name).method in ("lora", "mtl_lora")
    }
    each = {(layer.stack.path, layer.index): _roles(layer, leaves) for layer in arch.layers()}
    roles = next((found for found in each.values() if found), frozenset())
    inside = {leaf for layer in arch.layers() for leaf in _linears(layer)}
    other = leaves - inside
    if other or any(found and found != roles for found in each.values()) or not _sayable(roles, arch):
        got = f"{', '.join(sorted(other)[:2]) or config}"
        raise _unsaid("LoRAs of other linears than queries, keys, values and the feed-forward part", name, got)
    matrices = [letter for letter in "qkv" if letter in roles]
    return {
        "alpha": config.lora_alpha,
        "architecture": "lora",
        "attn_matrices": matrices or ["q", "v"],
        "composition_mode": "add",
        "dropout": config.dropout,
        "dtype": None,
        "init_weights": "lora",
        "init_weights_seed": None,
        "intermediate_lora": "ffn_in" in roles,
        "leave_out": sorted(number for place, number in numbers(arch).items() if not each[place]),
        "output_lora": "ffn_out" in roles,
        "r": config.r,
        "selfattn_lora": bool(matrices),
        "use_dora": False,
        "use_gating": config.gate != "none",
        "vera_b": None,
        "vera_d": None,
    }


def _linears(layer: LayerMap) -> dict[str, str]:
    """Return the linears of a layer that AdapterHub has a word for, and the word; both attentions share theirs."""
    found: dict[str, str] = {}
    for attention in (layer.attention, layer.cross_attention):
        for letter, leaf in (
            zip("qkv", (attention.query, attention.key, attention.value), strict=True) if attention else ()
        ):
            if leaf is not None:
                found[leaf] = letter
    return found | {layer.ffn_in[0]: "ffn_in", layer.ffn_out: "ffn_out"}


def _roles(layer: LayerMap, leaves: set[str]) -> frozenset[str]:
    """Return the words for the linears of a layer that are updated; "" among them where not all of a word's are."""
    words = _linears(layer)
    found = {word for leaf, word in words.items() if leaf in leaves}
    return frozenset(found | {"" for leaf, word in words.items() if word in found and leaf not in leaves})


def _sayable(roles: frozenset[str], arch: ArchitectureMap) -> bool:
    swapped = arch.model_type in ("llama", "mistral")  # there "intermediate" is the linear behind the other
    return bool(roles) and "" not in roles and not (swapped and roles & {"ffn_in", "ffn_out"})


def _prefix(config: PrefixConfig, name: str, arch: ArchitectureMap) -> dict[str, Any]:
    if config.form != "concat" or config.query_norm or config.gate not in ("none", "mean_padded"):
        raise _unsaid("this form of prefixes, or a gate over real tokens alone", name, config)
    if "self" not in config.attention or config.stack == "encoder" or len(arch.stacks) > 1:
        raise _unsaid("these prefixes; those of an encoder and a decoder stay here", name, config)
    if config.tokens != "apart":
        raise _unsaid("that tokens stand behind a prefix", name, config)
    return {
        "architecture": "prefix_tuning",
        "bottleneck_size": config.mlp_size,
        "cross_prefix": "cross" in config.attention or all(s.cross_attention is None for s in arch.stacks),
        "dropout": config.dropout,
        "encoder_prefix": True,
        "flat": config.reparametrization == "flat",
        "init_weights_seed": None,
        "non_linearity": "tanh",
        "prefix_length": config.num_virtual_tokens,
        "shared_gating": True,
        "use_gating": config.gate != "none",
    }


def _owner(layer: LayerMap, place: str, arch: ArchitectureMap) -> str:
    family = _OWNERS.get(_FAMILIES.get(arch.model_type, ""))
    end = {"attention": "attention_adapters", "cross": "cross_attention_adapters", "ffn": "output_adapters"}[place]
    if family is not None:
        end = family[place].format(last=1 if layer.cross_attention is None else 2)
    return f"{layer.path}.{end}"


def _tensors(model: PreTrainedModel, name: str, arch: ArchitectureMap) -> dict[str, Tensor]:
    """Return the tensors by AdapterHub's names; a class with a head has its base's path before them."""
    prefix = base_path(model)
    found: dict[str, Tensor] = {}
    tables: dict[int, tuple[Tensor, Tensor]] = {}
    for _, delta in deltas_of(model, name):
        config, site, inside = delta.config(name), delta.site, delta.own(name)
        if config.method in ("bottleneck", "parallel"):
            layer = next(s for s in arch.stacks if s.path == site.stack).layer(site.layer)
            owner = f"{_owner(layer, site.slot.partition('_')[0], arch)}.adapters.{name}"
            before = config.norms.ln_before if isinstance(config, Bottleneck) else config.norm_before
            for ours, tensor in inside.named_parameters():
                found |= _bottleneck_keys(owner, ours, tensor, before)
        elif config.method == "lora":
            if site.part is not None:
                raise _unsaid("LoRAs of slices of a fused linear", name, site.leaf)
            found |= {f"{site.leaf}.loras.{name}.{KEYS[ours]}": t for ours, t in inside.named_parameters()}
        elif config.method == "mtl_lora":
            if site.part is not None:
                raise _unsaid("updates of slices of a fused linear", name, site.leaf)
            found |= mtl_lora_keys(site.leaf, name, inside)
        elif config.method == "prefix":
            if config.reparametrization == "flat":
                tables[site.layer] = inside.prefix_key, inside.prefix_value
            if config.gate != "none":
                gate = f"{site.leaf}.prefix_tuning.prefix_gates.{name}"
                found |= {f"{gate}.weight": inside.gate_weight, f"{gate}.bias": inside.gate_bias}
    found |= _shared(model, name, prefix, tables)
    return found


def _bottleneck_keys(owner: str, ours: str, tensor: Tensor, before: bool) -> dict[str, Tensor]:
    down = {"down": "weight", "down_bias": "bias"}.get(ours)
    if down:
        return {f"{owner}.adapter_down.{int(before)}.{down}": tensor}
    found = {f"{owner}.{ENDS[ours]}": tensor.view(1, -1) if ours == "gate_weight" else tensor}
    if ours.startswith("norm_before"):  # the library has it under both names
        found[f"{owner}.adapter_down.0.{ours.rpartition('_')[2]}"] = tensor
    return found


def _shared(
    model: PreTrainedModel, name: str, prefix: str, tables: Mapping[int, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Return what layers share: the network of prefixes or their table, under every name the library has for it."""
    import torch

    found: dict[str, Tensor] = {}
    shared: Any = shared_modules(model, name)
    pool: dict[str, Tensor] = {}
    if tables:
        rows = [side.transpose(0, 1) for layer in sorted(tables) for side in tables[layer]]  # [P, G, K] each
        pool["control_trans"] = torch.stack(rows, 1).flatten()
    for network in shared["prefix"].networks.values() if "prefix" in shared else ():
        names = {"embedding": "wte.weight", "down": "control_trans.0", "up": "control_trans.2"}
        for ours, tensor in network.named_parameters():
            head, _, rest = ours.partition(".")
            pool[names[head] + (f".{rest}" if rest else "")] = tensor
    for key, tensor in pool.items():
        found[f"{prefix}prefix_tuning.prefix_tunings.{name}.self_prefix.{key}"] = tensor
        for _, delta in deltas_of(model, name):
            if delta.config(name).method == "prefix":
                inside = f"{delta.site.leaf}.prefix_tuning.pool.prefix_tunings.{name}.self_prefix.{key}"
                found[inside] = tensor
    for ours, tensor in shared["invertible"].named_parameters() if "invertible" in shared else ():
        function, part, kind = ours.split(".")[-3:]
        number = {"inner": 0, "outer": 2}[part]
        found[f"{prefix}invertible_adapters.{name}.{function}.{number}.{kind}"] = tensor
    return found
