"""Prefix tuning in peft's files: a table ``[P, 2 L G K]`` of what a key-value cache would hold."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfadapt import attachment
from hfadapt.adapters.formats import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Described,
    arch_of,
    atomic_folder,
    head_modules,
    paths_in,
    require_loadable,
)
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.runtime import deltas_of, shared_modules

from ..shared.peft import refuse_own_folder, task_type_of, whole_modules
from .config import PrefixConfig
from .delta import PrefixDelta

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt.architecture import StackMap

__all__ = ["read_prefix", "write_prefix"]

_KEY, _HEAD = "prompt_embeddings", "base_model."
#: Families whose outputs were compared with peft's, and those that share their code.
_CHECKED = (
    *("bert", "roberta", "xlm-roberta", "electra", "gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma"),
    *("gemma2", "bart", "mbart", "t5", "mt5"),
)
#: peft hands token types on for these tasks, and drops them for the others.
_TYPED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_TASKS = (*_TYPED, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
_SIZES = ("num_virtual_tokens", "num_layers", "token_dim", "num_attention_heads")
_HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_type", "peft_version"),
    # of the network that made the table, which peft does not save
    *("encoder_hidden_size", "init_weights", "prefix_projection", "revision"),
)
_MERGE = "hfadapt.PrefixConfig(..., tokens='behind'), trained anew"


def read_prefix(
    model: PreTrainedModel, config: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path, name: str
) -> Described:
    """Describe a prefix that peft saved, with the head that it was trained with.

    Args:
        model: The base.
        config: Content of ``adapter_config.json``.
        tensors: Content of the file of weights.
        folder: For errors.
        name: What the adapter is to be called.

    Raises:
        CheckpointError: the files are damaged, of a family that was not compared, or do not fit this model.
    """
    stack = _stack(model, folder)
    length, layers, width, heads = _check_fields(config, folder)
    if _KEY not in tensors:
        there = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(
            f"{WEIGHTS_FILE} holds no {_KEY!r}",
            where=str(folder),
            got=there or "no tensors",
            allowed=f"{_KEY}, and the modules of modules_to_save",
            try_="save the prefix again with peft's save_pretrained",
        )
    table = tensors[_KEY]
    both = config["num_transformer_submodules"] == 2
    # a decoder may have fewer layers than its encoder, whose number counts
    fits = stack.num_layers <= layers if both else stack.num_layers == layers
    fits &= (heads * stack.head_dim, heads) == (width, stack.num_kv_heads) and both == (len(arch_of(model).stacks) > 1)
    if not fits or tuple(table.shape) != (length, 2 * layers * width):
        raise CheckpointError(
            "the prefix has another size than its config and this model say",
            where=str(folder),
            got=f"{list(table.shape)} for {length} tokens in {layers} layers of {heads} heads, {width} wide",
            allowed=f"{stack.num_layers} layers of {stack.num_kv_heads} heads of {stack.head_dim} each",
            try_="load it on the base that was adapted",
        )
    form = PrefixConfig(
        length,
        "flat",
        attention=("self",),
        stack="decoder" if both else "all",
        tokens="behind" if config["task_type"] in _TYPED else "behind_untyped",
    )
    cut = table.reshape(length, 2 * layers, heads, width // heads).transpose(0, 1).transpose(1, 2)
    return Described(name, (form,), partial(_weights, table=cut, both=both), _head(model, tensors, config, folder))


def _stack(model: PreTrainedModel, folder: Path) -> StackMap:
    """Return the stack whose self-attention peft gives the prefix to: the decoder's, where there is one."""
    arch = arch_of(model)
    if arch.model_type not in _CHECKED:
        raise CheckpointError(
            "a family on which no prefix of peft's has been compared with its outputs",
            where=str(folder),
            got=arch.model_type,
            allowed=", ".join(_CHECKED),
            try_=_MERGE,
        )
    return next((stack for stack in arch.stacks if stack.kind == "decoder"), arch.stacks[0])


def _check_fields(config: Mapping[str, Any], folder: Path) -> tuple[int, int, int, int]:
    def whole(value: Any) -> bool:
        return type(value) is int and 0 < value < 1 << 31

    wrong = [f"{key}={config.get(key)!r}" for key in _SIZES if not whole(config.get(key))]
    if config.get("num_transformer_submodules") not in (1, 2):
        wrong.append(f"num_transformer_submodules={config.get('num_transformer_submodules')!r}")
    if wrong:
        got = ", ".join(wrong)[:300]
        raise CheckpointError(
            f"{CONFIG_FILE} is damaged",
            where=str(folder),
            got=got,
            allowed=f"{', '.join(_SIZES)}: whole numbers from 1 on; num_transformer_submodules: 1 or 2",
            try_="save the prefix again with peft's save_pretrained",
        )
    known = (*_SIZES, *_HARMLESS, "num_transformer_submodules", "task_type")
    strange = [f"{key}={value!r} (not known here)" for key, value in config.items() if key not in known and value]
    if strange:
        got, fits = ", ".join(strange)[:300], f"fields among {', '.join(known)}"
        raise CheckpointError("more than a prefix", where=str(folder), got=got, allowed=fits, try_=_MERGE)
    if config.get("task_type") not in _TASKS:
        raise CheckpointError(
            "peft applies a prefix in the classes of its tasks alone, and the folder names none",
            where=str(folder),
            got=f"task_type {config.get('task_type')!r}",
            allowed=", ".join(_TASKS),
            try_=f"write the task into {CONFIG_FILE}",
        )
    length, layers, width, heads = (config[key] for key in _SIZES)
    return length, layers, width, heads


def _head(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> dict[str, Tensor]:
    """Return the modules that the file holds whole; peft writes their paths without a ``model`` in front."""
    rest = [key for key in tensors if key != _KEY]
    saved = config.get("modules_to_save") or ()
    words = isinstance(saved, (list, tuple)) and all(isinstance(one, str) for one in saved)
    paths = {key: key.removeprefix(_HEAD).rpartition(".")[0] for key in rest}
    strange = [
        key
        for key, path in paths.items()
        if not key.startswith(_HEAD) or not words or not any(f".{path}.".find(f".{one}.") >= 0 for one in saved)
    ]
    if strange:
        got = f"{strange[0]} (modules_to_save={saved!r})"[:300]
        raise CheckpointError(
            "the file holds tensors that its config does not announce",
            where=str(folder),
            got=got,
            allowed=f"{_KEY}, and {_HEAD}... of modules that modules_to_save names",
            try_=f'"modules_to_save": [{paths[strange[0]].rpartition(".")[2]!r}] in {CONFIG_FILE}'.replace("'", '"'),
        )
    places = paths_in(model, dict.fromkeys(paths.values()), folder) if paths else {}
    return {f"{places[paths[key]]}.{key.rpartition('.')[2]}": tensors[key] for key in rest}


def _entry(layer: int, layers: int, both: bool) -> int:
    """Return where a layer's keys stand in the table, its values behind them.

    For encoder-decoders peft writes the table twice, one behind the other, and gives each layer of the decoder four
    entries, of which its self-attention reads two: layers ``l`` and ``l + L / 2`` share theirs.
    """
    return 4 * layer % (2 * layers) if both else 2 * layer


def _weights(model: PreTrainedModel, name: str, table: Tensor, both: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, delta in deltas_of(model, name):
        if delta.site.slot == "attention_core":
            at = _entry(delta.site.layer, table.shape[0] // 2, both)
            found[f"{path}.adapters.{name}.prefix_key"] = table[at]
            found[f"{path}.adapters.{name}.prefix_value"] = table[at + 1]
    return found


def write_prefix(model: PreTrainedModel, folder: Path, name: str) -> None:
    """Write a prefix, and the trained head if there is one, as peft does: ``PeftModel.from_pretrained`` reads it.

    Args:
        model: With the adapter attached.
        folder: Made if it is missing; a folder that ``hfadapt.save`` wrote is left alone.
        name: Of the adapter.

    Raises:
        AttachError: peft's prefixes cannot say what the adapter is.
        CheckpointError: the folder holds an adapter of hfadapt's, or cannot be written.
    """
    from peft import PrefixTuningConfig
    from safetensors.torch import save_file

    adapter = attachment(model).require(name)
    config, arch = adapter.configs[0], arch_of(model)
    assert isinstance(config, PrefixConfig)
    task = task_type_of(model) or "FEATURE_EXTRACTION"
    stack = _writable(model, name, task)
    require_loadable(model, folder, name, besides=head_modules(model))
    refuse_own_folder(folder)
    both = len(arch.stacks) > 1
    layers = arch.stacks[0].num_layers if both else stack.num_layers
    tables: Any = shared_modules(model, name)
    prepared = {(name, config.method): tables[config.method].prepare()} if config.reparametrization == "mlp" else {}
    prefixes = [
        (delta, delta.prefixes(name, prepared)) for _, delta in deltas_of(model, name) if isinstance(delta, PrefixDelta)
    ]
    wide = torch.promote_types(prefixes[0][1][0].dtype, torch.float32)
    table = torch.zeros(2 * layers, stack.num_kv_heads, config.num_virtual_tokens, stack.head_dim, dtype=wide)
    written: dict[int, int] = {}
    for delta, pair in prefixes:
        at = _entry(delta.site.layer, layers, both)
        for step, one in enumerate(pair):
            if at in written and not torch.equal(table[at + step], one.detach().to(table)):
                raise AttachError(
                    "peft gives two layers of this encoder-decoder one prefix, and these differ",
                    where=f"adapter {name!r}",
                    got=f"layers {written[at]} and {delta.site.layer}",
                    allowed="the same numbers in both",
                    try_="hfadapt.save(model, folder) writes any adapter",
                )
            table[at + step] = one.detach().to(table)
        written.setdefault(at, delta.site.layer)
    whole, own = whole_modules(model, name)
    width = stack.num_kv_heads * stack.head_dim
    described = PrefixTuningConfig(
        task_type=task,
        num_virtual_tokens=config.num_virtual_tokens,
        num_layers=layers,
        token_dim=width,
        num_attention_heads=stack.num_kv_heads,
        num_transformer_submodules=2 if both else 1,
        encoder_hidden_size=width,
        modules_to_save=whole or None,
        base_model_name_or_path=getattr(model.config, "_name_or_path", "") or None,
        inference_mode=True,
    )
    tensors = {_KEY: table.permute(2, 0, 1, 3).reshape(config.num_virtual_tokens, -1)}
    tensors |= {f"{_HEAD}{key}": value for key, value in own.items()}
    with atomic_folder(folder) as temporary:
        described.save_pretrained(str(temporary))
        packed = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        save_file(packed, str(temporary / WEIGHTS_FILE), metadata={"format": "pt"})


def _writable(model: PreTrainedModel, name: str, task: str) -> StackMap:
    """Return the stack whose prefix is written.

    Raises:
        AttachError: peft would compute something else.
    """
    arch = arch_of(model)
    configs = attachment(model).require(name).configs
    config: Any = configs[0]
    stack = next((stack for stack in arch.stacks if stack.kind == "decoder"), arch.stacks[0])
    typed = any(path.endswith("token_type_embeddings") for path, _ in model.named_modules())
    tokens = "behind_untyped" if typed and task not in _TYPED else "behind"
    chosen = {delta.site.layer for _, delta in deltas_of(model, name) if isinstance(delta, PrefixDelta)}
    places = {delta.site.stack for _, delta in deltas_of(model, name) if isinstance(delta, PrefixDelta)}
    cross = any(delta.site.slot == "cross_core" for _, delta in deltas_of(model, name))
    wrong = ""
    if arch.model_type not in _CHECKED:
        wrong = f"a prefix on {arch.model_type}, a family that was not compared"
    elif len(configs) != 1 or config.form != "concat" or config.gate != "none":
        wrong = " + ".join(map(str, configs))
    elif places != {stack.path} or cross or len(chosen) != stack.num_layers:
        wrong = f"layers {sorted(chosen)} of {', '.join(sorted(places))}{', and cross-attention' if cross else ''}"
    elif config.tokens == "apart" or (typed and config.tokens != tokens):
        wrong = f"tokens={config.tokens!r}"
    if wrong:
        more = ", stack='decoder', attention='self'" if len(arch.stacks) > 1 else ""
        raise AttachError(
            "peft's prefixes cannot say what this adapter is",
            where=f"adapter {name!r}",
            got=wrong,
            allowed=f"one PrefixConfig of all layers' self-attention, with tokens={tokens!r}",
            try_=f"attach and train it with hfadapt.PrefixConfig(..., tokens={tokens!r}{more}); "
            "hfadapt.save(model, folder) writes any adapter",
        )
    return stack
