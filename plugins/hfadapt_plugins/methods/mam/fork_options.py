"""What the options of the unified view's code mean: its arguments in terms of our configs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hfadapt import MethodConfig
from hfadapt.errors import ConfigError, did_you_mean
from hfadapt.errors.limits import require_number

from ..bottleneck import Bottleneck, LayerNorms
from ..lora import LoRA
from ..parallel import ParallelConfig
from ..prefix import PrefixConfig

__all__ = ["ARCHITECTURES", "configs_of", "read_options"]

ARCHITECTURES = ("roberta", "bart", "mbart")
#: The defaults of petl/options.py, for the options that decide what is computed.
_DEFAULTS: Mapping[str, Any] = {
    "attn_mode": "none",
    "attn_option": "concat",
    "attn_composition": "add",
    "ffn_mode": "none",
    "ffn_option": "none",
    "ffn_adapter_layernorm_option": "in",
    "ffn_adapter_scalar": "1",
    "hi_lnbefore": 0,
    "mid_dim": 800,
    "attn_bn": 200,
    "ffn_bn": -1,
    "lora_alpha": 32.0,
}
#: What can be read of each. Bitfit, prompt tuning, a norm at an adapter's output and mBART's other input cannot.
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "attn_mode": ("none", "prefix", "prefix_nomlp", "lora", "adapter"),
    "attn_option": ("none", "concat", "cross_attn", "cross_attn_noln", "cross_attn_relu", "parallel", "sequential"),
    "attn_composition": ("add", "gate_add"),
    "ffn_mode": ("none", "adapter", "lora"),
    "ffn_option": ("none", "parallel", "sequential", "pfeiffer"),
    "ffn_adapter_layernorm_option": ("none", "in"),
    "hi_lnbefore": (0,),
}
#: Of training, and of no consequence afterwards.
_OF_TRAINING = (
    "ffn_adapter_init_option", "prefix_dropout", "unfreeze_params", "load_path", "lora_dropout", "lora_init",
)  # fmt: skip


def read_options(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options that decide what is computed, with the defaults of those that are left out.

    Raises:
        ConfigError: an option is unknown, or has a value that cannot be read.
    """
    known = (*_DEFAULTS, *_OF_TRAINING)
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigError(
            "unknown option",
            where=where,
            got=", ".join(map(str, unknown))[:200],
            allowed=", ".join(known),
            try_=did_you_mean(str(unknown[0]), known) or f"leave {unknown[0]} out",
        )
    options = {key: given.get(key, default) for key, default in _DEFAULTS.items()}
    for key, allowed in _ALLOWED.items():
        if options[key] not in allowed:
            raise ConfigError(
                f"cannot read {key}",
                where=where,
                got=repr(options[key]),
                allowed=", ".join(map(str, allowed)),
                try_=did_you_mean(options[key], [one for one in allowed if isinstance(one, str)])
                or f"a run with {key}={allowed[-1]!r}; this one's own code computes what it trained",
            )
    needed = [("attn_bn", options["attn_mode"]), ("ffn_bn", options["ffn_mode"]), ("mid_dim", options["attn_mode"])]
    for key, mode in needed:
        if mode != "none":
            require_number(key, options[key], where=where, whole=True, least=1, most=2**20)
    require_number("lora_alpha", options["lora_alpha"], where=where, above=0)
    pairs = {
        "prefix": ("concat", "cross_attn", "cross_attn_noln", "cross_attn_relu"),
        "adapter": ("parallel", "sequential"),
    }
    mode = options["attn_mode"]
    if options["attn_option"] not in pairs.get(mode, (options["attn_option"],)):
        raise ConfigError(
            f"no attn_option of attn_mode {mode!r}",
            where=where,
            got=options["attn_option"],
            allowed=", ".join(pairs[mode]),
            try_=did_you_mean(options["attn_option"], pairs[mode]) or f"attn_option={pairs[mode][0]!r}",
        )
    if options["ffn_mode"] == "adapter" and options["ffn_option"] == "none":
        raise ConfigError(
            "no ffn_option",
            where=where,
            got="none",
            allowed="parallel, sequential, pfeiffer",
            try_="ffn_option='parallel', that of MAM, or ffn_mode='none'",
        )
    scale = options["ffn_adapter_scalar"]
    if scale != "learnable_scalar":
        try:
            options["ffn_adapter_scalar"] = float(scale)
        except (TypeError, ValueError):
            options["ffn_adapter_scalar"] = math.nan
        require_number("ffn_adapter_scalar", options["ffn_adapter_scalar"], where=where)
    return options


def configs_of(arch: str, options: Mapping[str, Any]) -> tuple[MethodConfig, ...]:
    """Return our configs for the fork's options; ``()`` for the base alone."""
    attn, ffn = _attention_config(arch, options), _ffn_config(options)
    return tuple(c for c in (attn, ffn) if c is not None)


def _attention_config(arch: str, options: Mapping[str, Any]) -> MethodConfig | None:
    mode, option, size = options["attn_mode"], options["attn_option"], int(options["attn_bn"])
    if mode == "prefix_nomlp":
        return PrefixConfig(size, "flat")
    if mode == "prefix":
        form = {
            "concat": "concat",
            "cross_attn_relu": "relu",
            "cross_attn_noln": "no_gating",
            "cross_attn": "no_gating",
        }
        chosen = "gate_add" if options["attn_composition"] == "gate_add" else form[option]
        # Only BART gives the added part a norm and un-scaled queries of its own.
        normed = option == "cross_attn" or (option == "cross_attn_relu" and arch == "bart")
        return PrefixConfig(size, "mlp", int(options["mid_dim"]), form=chosen, query_norm=normed)
    if mode == "lora":
        return LoRA(size, float(options["lora_alpha"]), ("query", "value"), init="normal")
    if mode == "adapter" and option == "parallel":
        return ParallelConfig(size, 1.0, ("attention",), norm_before=True, init="normal")
    if mode == "adapter":
        on = ("attention",) if arch == "roberta" else ("attention", "cross")
        return Bottleneck(size=size, on=on, norms=LayerNorms(ln_before=True))
    return None


def _ffn_config(options: Mapping[str, Any]) -> MethodConfig | None:
    mode, option, size = options["ffn_mode"], options["ffn_option"], int(options["ffn_bn"])
    normed = options["ffn_adapter_layernorm_option"] == "in"
    if mode == "lora":
        return LoRA(size, float(options["lora_alpha"]), ("ffn_in", "ffn_out"), init="normal")
    if mode == "adapter" and option == "parallel":
        scale = options["ffn_adapter_scalar"]
        learned = scale == "learnable_scalar"
        return ParallelConfig(size, "learned" if learned else float(scale), ("ffn",), norm_before=normed)
    if mode == "adapter":
        norms = LayerNorms(ln_before=normed, original_ln_before=option == "pfeiffer")
        return Bottleneck(size=size, on=("ffn",), norms=norms)
    return None
