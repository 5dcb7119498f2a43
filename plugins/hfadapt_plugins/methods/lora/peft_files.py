"""LoRA adapters in peft's own files, through peft's own config class."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfadapt import Handle, attach, attachment
from hfadapt.adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_tensors
from hfadapt.atomic import atomic_folder
from hfadapt.errors import AttachError, CheckpointError, problem
from hfadapt.freezing import head_modules
from hfadapt.state import deltas_of

from .config import LoRA

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["load_peft", "save_peft"]

_PREFIX = "base_model.model."
_PARTS = {"lora_a": ".lora_A.weight", "lora_b": ".lora_B.weight"}
# What changes the computation of a plain LoRA, beside the fields that are read; all others only say how it was trained.
_UNKNOWN_HERE = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
)
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def save_peft(model: PreTrainedModel, folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Write a LoRA adapter, and the trained head if there is one, as peft does: ``PeftModel.from_pretrained`` reads it.

    Args:
        model: With the adapter attached.
        folder: Made if it is missing; a folder that ``hfadapt.save`` wrote is left alone.
        name: Of the adapter; may be left out where there is one.

    Raises:
        AttachError: there is no such adapter, or it is more than peft's LoRA can say.
        CheckpointError: the folder holds an adapter of hfadapt's, or cannot be written.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    name, config = _plain_lora(model, name)
    where = Path(folder) / CONFIG_FILE
    if where.is_file() and '"format": "hfadapt"' in where.read_text("utf-8"):
        raise CheckpointError(
            problem(
                "the folder holds an adapter of hfadapt's own",
                where=str(folder),
                try_="another folder for peft's files",
            )
        )
    deltas = [delta for _, delta in deltas_of(model, name)]
    tensors: dict[str, Tensor] = {}
    for delta in deltas:
        if delta.site.part is not None:
            raise AttachError(
                problem(
                    "peft cannot say that an update changes a slice of a fused linear",
                    where=f"adapter {name!r}, {delta.site.leaf}",
                    try_=f"target_modules=({delta.site.leaf.rpartition('.')[2]!r},) for all of it",
                )
            )
        for own, theirs in _PARTS.items():
            tensors[f"{_PREFIX}{delta.site.leaf}{theirs}"] = getattr(delta.own(name), own)
    heads = [path for path, head in head_modules(model).items() if any(p.requires_grad for p in head.parameters())]
    tensors |= {
        f"{_PREFIX}{path}.{key}": value
        for path in heads
        for key, value in model.get_submodule(path).state_dict().items()
    }
    leaves = [delta.site.leaf for delta in deltas]
    kind = type(model).__name__
    described = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  (peft itself reads fractions)
        lora_dropout=config.dropout,
        target_modules=leaves,
        use_rslora=config.use_rslora,
        # transformers' Conv1D keeps its weight as [in, out]
        fan_in_fan_out=all(not hasattr(model.get_submodule(leaf), "in_features") for leaf in leaves),
        modules_to_save=heads or None,
        task_type=next((task for end, task in _TASK_TYPES.items() if kind.endswith(end)), None),
        base_model_name_or_path=getattr(model.config, "_name_or_path", "") or None,
        inference_mode=True,
    )
    with atomic_folder(folder) as temporary:
        described.save_pretrained(str(temporary))
        packed = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        save_file(packed, str(temporary / WEIGHTS_FILE), metadata={"format": "pt"})


def _plain_lora(model: PreTrainedModel, name: str | None) -> tuple[str, LoRA]:
    state = attachment(model)
    if name is None and len(state.names) != 1:
        raise AttachError(
            problem("which adapter?", allowed=", ".join(state.names), try_="save_peft(model, folder, name)")
        )
    adapter = state.require(name or state.names[0])
    config = adapter.configs[0]
    if len(adapter.configs) != 1 or not isinstance(config, LoRA) or config.gate != "none":
        raise AttachError(
            problem(
                "only a LoRA without a gate can be written in peft's files",
                where=f"adapter {adapter.name!r}",
                got=" + ".join(str(one) for one in adapter.configs),
                try_="hfadapt.save(model, folder) writes any adapter",
            )
        )
    return adapter.name, config


def load_peft(model: PreTrainedModel, folder: str | os.PathLike[str], name: str = "default") -> Handle:
    """Attach a LoRA adapter that peft saved, with the head that it saved.

    Args:
        model: The base, of the class that was adapted; a head that the files lack stays as it is.
        folder: With peft's ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: What to call the adapter here.

    Raises:
        CheckpointError: the files are no plain LoRA of peft's, damaged, or of another base.
        AttachError: the name is taken.
    """
    config = _read_config(folder)
    updates, others = _split(read_tensors(folder), folder)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    missing = [leaf for leaf in updates if f"{leaf}.weight" not in own] + [key for key in others if key not in own]
    sizes = {parts["lora_a"].shape[0] for parts in updates.values()}
    if missing or sizes != {config.r}:
        got = f"no {', '.join(missing[:3])} here" if missing else f"ranks {sorted(sizes)}, r={config.r}"
        raise CheckpointError(
            problem("the adapter is of another base", where=str(folder), got=f"{type(model).__name__}: {got}")
        )
    method = LoRA(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=tuple(updates),
        dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
    )
    handle = attach(model, method, name)
    try:
        _copy(model, name, updates, others, folder)
    except CheckpointError:
        handle.detach()
        raise
    return handle


def _read_config(folder: str | os.PathLike[str]) -> LoraConfig:
    from peft import LoraConfig

    try:
        kind = json.loads((Path(folder) / CONFIG_FILE).read_text("utf-8")).get("peft_type")
        if kind != "LORA":
            raise CheckpointError(
                problem("no LoRA of peft's", where=str(folder), got=f"peft_type {kind!r}", allowed="'LORA'")
            )
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(problem(f"{CONFIG_FILE} cannot be read", where=str(folder), got=str(error))) from error
    assert isinstance(config, LoraConfig)  # peft chooses the class by peft_type
    more = [field for field in _UNKNOWN_HERE if getattr(config, field, None)]
    more += [f"bias={config.bias!r}"] if config.bias != "none" else []
    if more:
        raise CheckpointError(
            problem(
                "more than a plain LoRA",
                where=str(folder),
                got=", ".join(more),
                try_="merge it with peft (merge_and_unload) and adapt what comes out",
            )
        )
    return config


def _split(
    tensors: dict[str, Tensor], folder: str | os.PathLike[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the two matrices of each linear, and the other tensors by their name in the model."""
    updates: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path = key.removeprefix(_PREFIX)
        part = next((own for own, theirs in _PARTS.items() if path.endswith(theirs)), None)
        if part is None:
            others[path] = tensor
        else:
            updates.setdefault(path.removesuffix(_PARTS[part]), {})[part] = tensor
    halves = [leaf for leaf, parts in updates.items() if len(parts) != len(_PARTS)]
    if not updates or halves:
        got = f"one matrix of two at {halves[0]}" if halves else "no lora_A and lora_B"
        raise CheckpointError(problem(f"{WEIGHTS_FILE} holds no whole LoRA", where=str(folder), got=got))
    return updates, others


def _copy(
    model: PreTrainedModel,
    name: str,
    updates: dict[str, dict[str, Tensor]],
    others: dict[str, Tensor],
    folder: str | os.PathLike[str],
) -> None:
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    pairs = [(key, own[key], tensor) for key, tensor in others.items()]
    for _, delta in deltas_of(model, name):
        given = updates[delta.site.leaf]
        pairs += [(delta.site.leaf, getattr(delta.own(name), part), given[part]) for part in _PARTS]
    wrong: list[Any] = [
        (key, list(theirs.shape), list(ours.shape)) for key, ours, theirs in pairs if ours.shape != theirs.shape
    ]
    if wrong:
        key, got, allowed = wrong[0]
        raise CheckpointError(
            problem("a tensor has another shape than here", where=f"{folder}, {key}", got=got, allowed=allowed)
        )
    with torch.no_grad():
        for _, ours, theirs in pairs:
            ours.copy_(theirs)
