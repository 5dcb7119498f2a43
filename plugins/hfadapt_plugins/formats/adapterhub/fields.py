"""What AdapterHub's configs may say: every field is read, harmless, or refused by name where it says something.

The fields are those of adapters 1.3.0; a test compares them with it where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .folder import number, refused

__all__ = ["FIELDS", "KINDS", "check", "kind_of"]


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _positive(value: Any) -> bool:
    return number(value) and 0 < value < float("inf")


def _fraction(value: Any) -> bool:
    return number(value) and 0 <= value < 1


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _any(value: Any) -> bool:
    return True


def _layers(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(type(i) is int and i >= 0 for i in value))


def _factor(value: Any) -> bool:
    return _positive(value) or (isinstance(value, dict) and bool(value) and all(map(_positive, value.values())))


def _scale(value: Any) -> bool:
    return (number(value) and abs(value) < float("inf")) or value in ("learned", "channel")


def _matrices(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(one in ("q", "k", "v") for one in value)


def _maybe_positive(value: Any) -> bool:
    return value is None or _positive(value)


def _nested(value: Any) -> bool:
    return value is None or isinstance(value, dict)


Fits = Callable[[Any], bool]

#: Of each kind, the fields that are read, and what may stand there.
FIELDS: dict[str, dict[str, Fits]] = {
    "bottleneck": {
        "mh_adapter": _truth,
        "output_adapter": _truth,
        "cross_adapter": _truth,
        "reduction_factor": _factor,
        "non_linearity": _text,
        "original_ln_before": _truth,
        "original_ln_after": _truth,
        "residual_before_ln": _truth,
        "adapter_residual_before_ln": _truth,
        "ln_before": _truth,
        "ln_after": _truth,
        "is_parallel": _truth,
        "scaling": _scale,
        "use_gating": _truth,
        "inv_adapter": lambda value: value in (None, "nice"),
        "inv_adapter_reduction_factor": _maybe_positive,
        "invertible_adapter": _nested,
        "leave_out": _layers,
        "dropout": _fraction,
    },
    "prefix_tuning": {
        "architecture": _text,
        "encoder_prefix": _truth,
        "cross_prefix": _truth,
        "leave_out": _layers,
        # which of the two it is, the tensors say: a prefix that was ejected keeps flat=false in its config
        "flat": _truth,
        "prefix_length": _whole,
        "bottleneck_size": _whole,
        "non_linearity": _text,
        "dropout": _fraction,
        "use_gating": _truth,
        "shared_gating": _truth,
    },
    "lora": {
        "architecture": _text,
        "selfattn_lora": _truth,
        "intermediate_lora": _truth,
        "output_lora": _truth,
        "leave_out": _layers,
        "r": _whole,
        "alpha": _positive,
        "dropout": _fraction,
        "attn_matrices": _matrices,
        "composition_mode": _text,
        "use_gating": _truth,
        "use_dora": _truth,
    },
}

FIELDS["mtl_lora"] = {
    **FIELDS["lora"],
    "n_up_projection": _whole,
    "task_specific_matrix_type": _text,
    "weights_sharpness": _positive,
}

#: How weights were drawn before the training, and what is without effect unless a refused field is set.
_HARMLESS = {
    "bottleneck": (
        "architecture",
        "init_weights",
        "init_weights_seed",
        "phm_dim",
        "factorized_phm_W",
        "shared_W_phm",
        "shared_phm_rule",
        "factorized_phm_rule",
        "phm_c_init",
        "phm_init_range",
        "learn_phm",
        "hypercomplex_nonlinearity",
        "phm_rank",
        "phm_bias",
        # acts in training alone: whole rows are dropped
        "stochastic_depth",
        # of releases before 2021
        "attention_type",
        "new_attention_norm",
    ),
    "prefix_tuning": ("init_weights_seed",),
    "lora": ("init_weights", "init_weights_seed", "dtype"),
    "mtl_lora": ("init_weights", "init_weights_seed", "dtype"),
}

#: What changes the computation in ways that no method here has; with the value that says nothing.
REFUSED: dict[str, dict[str, Any]] = {
    "bottleneck": {"phm_layer": False},
    "prefix_tuning": {},
    "lora": {"vera_d": None, "vera_b": None},
    "mtl_lora": {"vera_d": None, "vera_b": None},
}

_CURES = {
    "phm_layer": "a bottleneck adapter (hfadapt.Bottleneck), trained anew: no method here has Compacter's products",
    "vera_d": "merge it with adapters (merge_adapter), and adapt what comes out",
    "inv_adapter": "'nice' in its place: adapters cuts the halves of 'glow' along positions, which no method here does",
    "residual_before_ln": "True or False",
}

#: Kinds that no method here computes, and what would do.
KINDS = {
    "prompt_tuning": "prefix tuning (hfadapt.PrefixConfig), trained anew: no method here adds tokens to the input",
    "reft": "a low-rank update of the layer's output (hfadapt.LowRank), trained anew",
}


def kind_of(config: Mapping[str, Any], folder: Path) -> str:
    """Return the kind of a config: ``"bottleneck"``, ``"prefix_tuning"``, ``"lora"``, ``"mtl_lora"`` or ``"union"``.

    Raises:
        CheckpointError: no method here computes it.
    """
    kind = config.get("architecture")
    if kind is None:
        return "bottleneck"
    if kind in ("prefix_tuning", "lora", "mtl_lora", "union"):
        return str(kind)
    raise refused(
        "no kind of AdapterHub's adapters that hfadapt reads",
        folder,
        f"architecture {kind!r}",
        KINDS.get(str(kind), ""),
        "bottleneck adapters (no architecture), prefix_tuning, lora, mtl_lora, union",
    )


def check(kind: str, config: Mapping[str, Any], folder: Path) -> None:
    """Raise unless every field of a config is one that is understood.

    Raises:
        CheckpointError: a field holds what it never holds, or says what hfadapt cannot do; all such fields are named.
    """
    known = FIELDS[kind]
    wrong = [f"{key}={config[key]!r}"[:120] for key, fits in known.items() if key in config and not fits(config[key])]
    more = [f"{key}={config[key]!r}"[:120] for key, nothing in REFUSED[kind].items() if _says(config, key, nothing)]
    strange = [
        f"{key}={value!r} (not known here)"[:120]
        for key, value in config.items()
        if key not in (*known, *_HARMLESS[kind], *REFUSED[kind]) and value
    ]
    if wrong or more or strange:
        named = [one.partition("=")[0] for one in (*more, *wrong)]
        cure = next(
            (_CURES[one] for one in named if one in _CURES), "save again; the config was changed" if wrong else ""
        )
        raise refused(f"more than hfadapt's {kind} can say", folder, ", ".join([*more, *wrong, *strange]), cure)


def _says(config: Mapping[str, Any], key: str, nothing: Any) -> bool:
    return bool(config.get(key)) if nothing is False else config.get(key, nothing) != nothing
