"""LoRA adapters in peft's own files, through peft's own config class."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hfadapt import Handle, attach, attachment
from hfadapt.adapters.formats import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    all_or_nothing,
    as_described,
    atomic_folder,
    check_tensors,
    fill,
    head_modules,
    own_modules,
    own_tensors,
    read_tensors,
    require_finite,
    resize_outputs,
    target_folder,
)
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.runtime import deltas_of

from .config import LoRA
from .peft_config import read_peft_config
from .peft_tensors import PARTS, PREFIX, fit_to_model, split_tensors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["load_peft", "save_peft"]

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


def load_peft(model: PreTrainedModel, folder: str | os.PathLike[str], name: str = "default") -> Handle:
    """Attach a LoRA adapter that peft saved, with the head and the other modules that it saved.

    These are the adapter's own: the base's modules stay as they are, for other adapters and for calls without one.

    The adapter may have been trained with a head or without one: it is put on the same linears of the base either way.

    Args:
        model: The base that was adapted; a head that the files lack stays as it is.
        folder: With peft's ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: What to call the adapter here.

    Raises:
        CheckpointError: the files are damaged, say more than a plain LoRA can do (each such field is named), or do not
            fit this model.
        AttachError: the name is taken.
    """
    config = read_peft_config(folder)
    updates, others = fit_to_model(model, *split_tensors(read_tensors(folder), folder), config, folder)
    method = LoRA(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=tuple(updates),
        dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
    )
    require_finite({f"{path}{PARTS[part]}": t for path, parts in updates.items() for part, t in parts.items()}, folder)
    with as_described(folder), all_or_nothing(model):
        handle = attach(model, method, name, modules_to_save=dict.fromkeys(key.rpartition(".")[0] for key in others))
        _copy(model, name, updates, others, folder)
    return handle


def _copy(
    model: PreTrainedModel,
    name: str,
    updates: dict[str, dict[str, Tensor]],
    others: dict[str, Tensor],
    folder: str | os.PathLike[str],
) -> None:
    for path in own_modules(model, name):
        if f"{path}.weight" in others:
            resize_outputs(model, name, path, others[f"{path}.weight"].shape)
    own = {f"{path}.{key}": tensor for path, key, tensor in own_tensors(model, name)}
    pairs = [(key, own[key], tensor) for key, tensor in others.items()]
    deltas = [delta for _, delta in deltas_of(model, name)]
    more = {delta.site.leaf for delta in deltas} - set(updates)
    if more:
        # Names of modules are matched by their end, and a whole path may be the end of a longer one.
        got = f"{sorted(more)[0]} is meant by the same name as a linear of the file"
        raise CheckpointError("linears cannot be told apart by their paths", where=str(folder), got=got)
    for delta in deltas:
        given = updates[delta.site.leaf]
        pairs += [(f"{delta.site.leaf}{PARTS[part]}", getattr(delta.own(name), part), given[part]) for part in PARTS]
    targets, given = {key: [ours] for key, ours, _ in pairs}, {key: theirs for key, _, theirs in pairs}
    check_tensors(
        targets, given, folder, try_="the base that it was trained on; tensors of another shape are of another"
    )
    fill(targets, given)
