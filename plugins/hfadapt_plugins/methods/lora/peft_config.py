"""What peft's ``adapter_config.json`` of a LoRA may say, and what each field means for reading it here.

The table knows the fields of peft 0.21.2. peft itself need not be installed; where it is, its defaults are asked for
fields that the table does not know.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from hfadapt.adapters.formats import CONFIG_FILE
from hfadapt.errors import CheckpointError

__all__ = ["HARMLESS", "READ", "REFUSED", "PeftLoRA", "check_fields"]

# Fields that say what is computed, and are read.
READ = (
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_parameters",
    "use_dora",
    "use_rslora",
)

# Fields that say where the file comes from or how it was trained, or which linears it adapts: the weights show those.
HARMLESS = (
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    # A and B have one layout, whichever way round the base keeps its weight.
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "peft_version",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    # Options of an initialisation, without effect unless init_lora_weights names it (and that is looked at).
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    # Without effect unless use_qalora.
    "qalora_group_size",
)

# Fields that change the computation, or the modules, in ways that a plain LoRA here has not; with peft's default.
REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "ensure_weight_tying": False,
    "kasa_config": None,
    "layer_replication": None,
    "megatron_config": None,
    "monteclora_config": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_qalora": False,
    "velora_config": None,
}

# Initialisations that leave the base as it was. The others subtract from its weights what A and B start with.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")

_MERGE = "merge it with peft (merge_and_unload) and adapt what comes out"
_CONVERT = (
    "write it as a plain LoRA with peft's save_pretrained(folder, path_initial_model_for_weight_conversion=...), "
    "or merge it with peft (merge_and_unload)"
)


def _of_old_stacks(data: Mapping[str, Any]) -> bool:
    """Whether peft wrote it, and which: it names its version from 0.18 on, and this field always."""
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(data.get("peft_version") or ""))
    if numbers is None:
        return "megatron_core" in data
    return tuple(int(number or 0) for number in numbers.groups()) < (0, 19, 1)


@dataclasses.dataclass(frozen=True)
class PeftLoRA:
    """The fields of a plain LoRA of peft's, checked.

    Args:
        r: Rank.
        lora_alpha: Scale, divided by the rank or its root.
        lora_dropout: Dropout on what the update reads.
        use_rslora: Divide by the root.
        modules_to_save: Ends of the paths of modules that the file holds whole.
        rank_pattern: Ranks of modules whose paths end so, or match.
        alpha_pattern: Scales of such modules.
        use_dora: Lengths of rows are learned apart.
        biases: The base's biases of the linears are in the file, trained.
        all_biases: So are those of all its other modules.
        lora_bias: B has a bias.
        target_parameters: Ends of the paths of parameters that are updated themselves.
        old_stacks: A peft before 0.19.1 wrote it, which laid the matrices of stacked ones the other way round.
    """

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    modules_to_save: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_dora: bool
    biases: bool
    all_biases: bool
    lora_bias: bool
    target_parameters: tuple[str, ...] = ()
    old_stacks: bool = False

    def rank(self, path: str) -> int:
        """Return the rank of a module."""
        return int(_matched(self.rank_pattern, path, self.r))

    def alpha(self, path: str) -> float:
        """Return the scale of a module, to be divided by its rank or the root of that."""
        return _matched(self.alpha_pattern, path, self.lora_alpha)


def check_fields(data: Mapping[str, Any], folder: str | os.PathLike[str]) -> PeftLoRA:
    """Return what ``adapter_config.json`` of a plain LoRA says.

    Raises:
        CheckpointError: it holds a value of a wrong type, or says more than a plain LoRA can do: every such field is
            named.
    """
    _refuse_more(data, folder)
    wrong = [f"{key}={data[key]!r}" for key, fits in _TYPES.items() if key in data and not fits(data[key])]
    if wrong or "r" not in data:
        got = ", ".join(wrong) or "no r"
        bad = [key for key in _TYPES if key in data and not _TYPES[key](data[key])] or ["r"]
        raise CheckpointError(
            f"{CONFIG_FILE} is damaged",
            where=str(folder),
            got=got,
            allowed="; ".join(f"{key}: {_MEANT[key]}" for key in bad),
            try_="save the adapter again with peft's save_pretrained",
        )
    return PeftLoRA(
        r=data["r"],
        lora_alpha=data.get("lora_alpha", 8),
        lora_dropout=data.get("lora_dropout", 0.0),
        use_rslora=data.get("use_rslora", False),
        modules_to_save=tuple(data.get("modules_to_save") or ()),
        rank_pattern=data.get("rank_pattern") or {},
        alpha_pattern=data.get("alpha_pattern") or {},
        use_dora=bool(data.get("use_dora")),
        biases=data.get("bias") in ("lora_only", "all"),
        all_biases=data.get("bias") == "all",
        lora_bias=bool(data.get("lora_bias")),
        target_parameters=tuple(data.get("target_parameters") or ()),
        old_stacks=_of_old_stacks(data),
    )


def _refuse_more(data: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Raise and name every field that makes this more than A, B and whole modules on an unchanged base."""
    init = data.get("init_lora_weights", True)
    kind = init.lower() if isinstance(init, str) else init
    changed = [] if kind in _PLAIN_INITS else [f"init_lora_weights={init!r}"]
    more = [f"{key}={data[key]!r}" for key, usual in REFUSED.items() if key in data and not _same(data[key], usual)]
    unknown = {key: data[key] for key in data if key not in (*READ, *HARMLESS, *REFUSED)}
    defaults = _installed_defaults() if unknown else {}
    strange = [f"{key}={value!r}" for key, value in unknown.items() if not _same(value, defaults.get(key))]
    if changed and not more and not strange:
        raise CheckpointError(
            "this LoRA belongs to a base whose weights its initialisation changed",
            where=str(folder),
            got=changed[0],
            allowed=f"init_lora_weights of {', '.join(map(repr, _PLAIN_INITS))}",
            try_=_CONVERT,
        )
    if changed or more or strange:
        got = ", ".join([*more, *changed, *(f"{field} (not known here)" for field in strange)])
        # What is applied from a token on belongs to no weight, so that it cannot be merged either.
        cure = "run it with peft" if data.get("alora_invocation_tokens") else _MERGE
        raise CheckpointError(
            "more than a plain LoRA", where=str(folder), got=got, allowed=f"fields among {', '.join(READ)}", try_=cure
        )


def _same(value: Any, default: Any) -> bool:
    """Whether a field of the file says no more than the default does; nothing, no and empty are one for peft."""
    return value == default if value or default else True


def _installed_defaults() -> dict[str, Any]:
    """The defaults of the installed peft's LoraConfig, which may be newer than the table; empty without peft."""
    found: dict[str, Any] = {}
    # Any failure of another library at import only leaves its fields unknown, and they are refused by name.
    with contextlib.suppress(Exception):
        from peft import LoraConfig

        for field in dataclasses.fields(LoraConfig):
            if field.default_factory is not dataclasses.MISSING:
                found[field.name] = field.default_factory()
            elif field.default is not dataclasses.MISSING:
                found[field.name] = field.default
    return found


def _matched(patterns: Mapping[str, float], path: str, default: float) -> float:
    """Return the value of the first pattern that a path matches as peft does: whole, or its last parts."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _is_pattern(key: Any) -> bool:
    """Say whether a key is a regular expression that is quickly matched: no repetition of a group, few of others."""
    if not isinstance(key, str) or len(key) > 300 or re.search(r"\)[*+?{]", key) or len(re.findall(r"[*+{]", key)) > 3:
        return False
    try:
        re.compile(key)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _patterns(value: Any, fits: Callable[[Any], bool]) -> bool:
    return value is None or (isinstance(value, dict) and all(_is_pattern(k) and fits(v) for k, v in value.items()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))


_TYPES = {
    "bias": lambda v: v in ("none", "lora_only", "all"),
    "r": _is_rank,
    "rank_pattern": lambda v: _patterns(v, _is_rank),
    "alpha_pattern": lambda v: _patterns(v, lambda one: _is_number(one) and one > 0),
    "use_dora": lambda v: isinstance(v, bool),
    "lora_bias": lambda v: isinstance(v, bool),
    "lora_alpha": lambda v: _is_number(v) and v > 0,
    "lora_dropout": lambda v: _is_number(v) and 0 <= v < 1,
    "target_parameters": _names,
    "use_rslora": lambda v: isinstance(v, bool),
    "modules_to_save": _names,
}

_SWITCH = "true or false"
_LIST = "a list of names, or null"
#: The same in words.
_MEANT = {
    "bias": "'none', 'lora_only' or 'all'",
    "r": "a whole number from 1 on",
    "rank_pattern": "ranks by the end of a path",
    "alpha_pattern": "numbers above 0 by the end of a path",
    "use_dora": _SWITCH,
    "lora_bias": _SWITCH,
    "lora_alpha": "a number above 0",
    "lora_dropout": "a number from 0 to below 1",
    "target_parameters": _LIST,
    "use_rslora": _SWITCH,
    "modules_to_save": _LIST,
}
