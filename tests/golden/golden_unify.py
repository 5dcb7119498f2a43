"""The published code of the unified view (He et al. 2022) in terms of hfadapt.

Read a golden with `read`, build the base with `golden_unify_base.base_model`, and adapt it with `adapt`, which turns
the fork's options into our configs (`configs_of`) and copies its weights into our parameters (`parameter_map`). Every
option of the fork is mapped, also for combinations whose file is not here: prefixes as ``concat``,
``cross_attn_noln`` with ``add`` (no gating) or ``gate_add``, ``cross_attn_relu`` (multi-head parallel adapter),
``prefix_nomlp``; adapters parallel, sequential and Pfeiffer; LoRA; learned and fixed scales; input LayerNorm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from golden_files import DATA as ALL_DATA
from golden_files import Filler, metadata_of, starting_with, tensors_of
from torch import Tensor, nn
from transformers import PreTrainedModel

import hfadapt
from hfadapt.runtime.attachment import deltas_of
from hfadapt_plugins.methods.bottleneck import LayerNorms

DATA = ALL_DATA / "unify"
ARCHITECTURES = ("roberta", "bart", "mbart")
GENERATE = {"max_length": 9, "min_length": 2, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "early_stopping": False}


@dataclass(frozen=True)
class Golden:
    """One file: the fork's options and every tensor."""

    arch: str
    options: dict[str, object]
    tensors: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model was called with."""
        return starting_with(self.tensors, "input.")


def cases(folder: Path = DATA) -> list[str]:
    """Names of the goldens that are here, e.g. ``bart_mam``."""
    return sorted(p.stem for p in folder.glob("*.safetensors") if not p.stem.endswith("_base_weights"))


def read(case: str, folder: Path = DATA) -> Golden:
    """Read one golden."""
    path = folder / f"{case}.safetensors"
    return Golden(case.partition("_")[0], metadata_of(path, "options"), tensors_of(path))


def configs_of(arch: str, options: dict[str, object]) -> tuple[hfadapt.MethodConfig, ...]:
    """Our configs for the fork's options; ``()`` for the base alone."""
    attn, ffn = _attention_config(arch, options), _ffn_config(arch, options)
    return tuple(c for c in (attn, ffn) if c is not None)


def _attention_config(arch: str, options: dict[str, object]) -> hfadapt.MethodConfig | None:
    mode, option, size = options["attn_mode"], options["attn_option"], int(options["attn_bn"])  # type: ignore[arg-type]
    if mode == "prefix_nomlp":
        return hfadapt.PrefixConfig(size, "flat")
    if mode == "prefix":
        form = {
            "concat": "concat",
            "cross_attn_relu": "relu",
            "cross_attn_noln": "no_gating",
            "cross_attn": "no_gating",
        }
        chosen = "gate_add" if options["attn_composition"] == "gate_add" else form[str(option)]
        # Only BART gives the added part a norm and un-scaled queries of its own.
        normed = option == "cross_attn" or (option == "cross_attn_relu" and arch == "bart")
        mid = int(options["mid_dim"])  # type: ignore[call-overload]
        return hfadapt.PrefixConfig(size, "mlp", mid, form=chosen, query_norm=normed)
    if mode == "lora":
        return hfadapt.LoRA(size, float(options["lora_alpha"]), ("query", "value"), init="normal")  # type: ignore[arg-type]
    if mode == "adapter" and option == "parallel":
        return hfadapt.ParallelConfig(size, 1.0, ("attention",), norm_before=True, init="normal")
    if mode == "adapter":
        on = ("attention",) if arch == "roberta" else ("attention", "cross")
        return hfadapt.Bottleneck(size=size, on=on, norms=LayerNorms(ln_before=True))
    return None


def _ffn_config(arch: str, options: dict[str, object]) -> hfadapt.MethodConfig | None:
    mode, option, size = options["ffn_mode"], options["ffn_option"], int(options["ffn_bn"])  # type: ignore[arg-type]
    normed = options["ffn_adapter_layernorm_option"] == "in"
    if mode == "lora":
        return hfadapt.LoRA(size, float(options["lora_alpha"]), ("ffn_in", "ffn_out"), init="normal")  # type: ignore[arg-type]
    if mode == "adapter" and option == "parallel":
        scale = options["ffn_adapter_scalar"]
        return hfadapt.ParallelConfig(
            size, "learned" if scale == "learnable_scalar" else float(str(scale)), ("ffn",), norm_before=normed
        )
    if mode == "adapter":
        norms = LayerNorms(ln_before=normed, original_ln_before=option == "pfeiffer")
        return hfadapt.Bottleneck(size=size, on=("ffn",), norms=norms)
    return None


@dataclass(frozen=True)
class Pair:
    """One of our parameters, and how its shape becomes the fork's."""

    parameter: nn.Parameter
    to_fork: Callable[[Tensor], Tensor]
    from_fork: Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def parameter_map(model: PreTrainedModel, arch: str, name: str = "default") -> dict[str, Pair]:
    """The fork's name of each of our parameters."""
    found: dict[str, Pair] = {}
    for _, delta in deltas_of(model, name):
        weights, method = delta.adapters[name], delta.config(name).method
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
    shared = getattr(model, "hfadapt_shared", {})
    if name in shared:
        for key, parameter in shared[name]["prefix"].named_parameters():
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


def _names(arch: str, delta: hfadapt.Delta, method: str) -> tuple[str, dict[str, str]]:
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


# New weights that the fork makes and never reads (they have no gradient in its goldens).
_UNREAD = {
    "roberta": r"prompt_model\.(\w+_enc|\w+2|encoder_attn_\w+|decoder_cross_attn_\w+)\.|\.output\.ef_ffn_adapter\.",
    "mbart": r"\.ef_transform_layer_norm\.",
    "bart": r"(?!)",
}


def adapt(model: PreTrainedModel, golden: Golden) -> dict[str, Pair]:
    """Attach what the golden's options say, with its weights; return the map of parameters.

    Every new weight of the golden is used, but for those that the fork does not read.
    """
    configs = configs_of(golden.arch, golden.options)
    filler = Filler(golden.tensors)
    pairs: dict[str, Pair] = {}
    if configs:
        hfadapt.attach(model, configs)
        pairs = parameter_map(model, golden.arch)
        for key, pair in pairs.items():
            filler.copy(pair.parameter, f"new.{key}", pair.from_fork)
    unread = re.compile(_UNREAD[golden.arch])
    filler.check("new.", [key for key in golden.tensors if unread.search(key)])
    return pairs


def outputs_of(model: PreTrainedModel, golden: Golden) -> Iterator[tuple[str, Tensor]]:
    """Run the golden's inputs; yield each output under its name."""
    out = model(**golden.inputs, output_hidden_states=True, use_cache=False)
    yield "loss", out.loss.view(1)
    yield "logits", out.logits
    if golden.arch == "roberta":
        yield from ((f"hidden.{i}", h) for i, h in enumerate(out.hidden_states))
        return
    yield from ((f"enc_hidden.{i}", h) for i, h in enumerate(out.encoder_hidden_states))
    yield from ((f"dec_hidden.{i}", h) for i, h in enumerate(out.decoder_hidden_states))
