"""LoRA adapters in peft's files: read from their fields, written through peft's own config class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt import attachment
from hfadapt.adapters.formats import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Described,
    atomic_folder,
    head_modules,
    own_tensors,
    target_folder,
)
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.runtime import deltas_of

from .config import LoRA
from .peft_config import check_fields
from .peft_tensors import PARTS, PREFIX, Updates, fit_to_model, split_tensors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["read_lora", "save_peft"]

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
    where = target_folder(folder) / CONFIG_FILE
    if where.is_file() and '"format": "hfadapt"' in where.read_text("utf-8", errors="replace"):
        raise CheckpointError(
            "the folder holds an adapter of hfadapt's own", where=str(folder), try_="another folder for peft's files"
        )
    deltas = [delta for _, delta in deltas_of(model, name)]
    tensors: dict[str, Tensor] = {}
    for delta in deltas:
        if delta.site.part is not None:
            raise AttachError(
                "peft cannot say that an update changes a slice of a fused linear",
                where=f"adapter {name!r}, {delta.site.leaf}",
                try_=f"target_modules=({delta.site.leaf.rpartition('.')[2]!r},) for all of it",
            )
        for own, theirs in PARTS.items():
            tensors[f"{PREFIX}{delta.site.leaf}{theirs}"] = getattr(delta.own(name), own)
    adapter = attachment(model).require(name)
    whole = [*adapter.heads, *adapter.modules]
    tensors |= {f"{PREFIX}{path}.{key}": value for path, key, value in own_tensors(model, name)}
    for path, head in head_modules(model).items():  # trained in place, together with the base
        if path not in adapter.heads and any(p.requires_grad for key, p in head.named_parameters() if _is_base(key)):
            whole.append(path)
            tensors |= {f"{PREFIX}{path}.{key}": value for key, value in head.state_dict().items() if _is_base(key)}
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
        modules_to_save=whole or None,
        task_type=next((task for end, task in _TASK_TYPES.items() if kind.endswith(end)), None),
        base_model_name_or_path=getattr(model.config, "_name_or_path", "") or None,
        inference_mode=True,
    )
    with atomic_folder(folder) as temporary:
        described.save_pretrained(str(temporary))
        packed = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        save_file(packed, str(temporary / WEIGHTS_FILE), metadata={"format": "pt"})


def _is_base(key: str) -> bool:
    return ".hfadapt." not in f".{key}"


def _plain_lora(model: PreTrainedModel, name: str | None) -> tuple[str, LoRA]:
    state = attachment(model)
    if name is None and len(state.names) != 1:
        raise AttachError("which adapter?", allowed=", ".join(state.names), try_="save_peft(model, folder, name)")
    adapter = state.require(name or state.names[0])
    config = adapter.configs[0]
    if len(adapter.configs) != 1 or not isinstance(config, LoRA) or config.gate != "none":
        raise AttachError(
            "only a LoRA without a gate can be written in peft's files",
            where=f"adapter {adapter.name!r}",
            got=" + ".join(str(one) for one in adapter.configs),
            try_="hfadapt.save(model, folder) writes any adapter",
        )
    return adapter.name, config


def read_lora(
    model: PreTrainedModel, config: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path, name: str
) -> Described:
    """Describe a LoRA that peft saved, with the head and the other modules that it saved.

    The adapter may have been trained with a head or without one: it is put on the same linears of the base either way.

    Args:
        model: The base that was adapted; a head that the files lack stays as it is.
        config: Content of ``adapter_config.json``.
        tensors: Content of the file of weights.
        folder: For errors.
        name: What the adapter is to be called.

    Raises:
        CheckpointError: the files are damaged, say more than a LoRA can do here (each such field is named), or do not
            fit this model.
    """
    fields = check_fields(config, folder)
    updates, others = fit_to_model(model, *split_tensors(tensors, folder), fields, folder)
    method = LoRA(
        r=fields.r,
        lora_alpha=fields.lora_alpha,
        target_modules=tuple(updates),
        dropout=fields.lora_dropout,
        use_rslora=fields.use_rslora,
    )
    return Described(name, (method,), partial(_weights, updates=updates, folder=folder), others)


def _weights(model: PreTrainedModel, name: str, updates: Updates, folder: Path) -> dict[str, Tensor]:
    deltas = list(deltas_of(model, name))
    more = {delta.site.leaf for _, delta in deltas} - set(updates)
    if more:
        # Names of modules are matched by their end, and a whole path may be the end of a longer one.
        got = f"{sorted(more)[0]} is meant by the same name as a linear of the file"
        raise CheckpointError("linears cannot be told apart by their paths", where=str(folder), got=got)
    return {
        f"{path}.adapters.{name}.{part}": tensor
        for path, delta in deltas
        for part, tensor in updates[delta.site.leaf].items()
    }
