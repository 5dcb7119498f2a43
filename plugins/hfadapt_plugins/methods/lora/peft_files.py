"""LoRA adapters in peft's files: read from their fields, written through peft's own config class."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfadapt import attachment
from hfadapt.adapters.formats import WEIGHTS_FILE, Described, atomic_folder, head_modules, require_loadable
from hfadapt.architecture import is_linear
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.runtime import deltas_of

from ..shared.peft import refuse_own_folder
from .config import LinearUpdate, LoRA
from .delta import LoRADelta
from .dora import row_norms, weight_of
from .parameter import ParameterDelta
from .peft_config import check_fields
from .peft_parameters import path_of, take_parameters, tensors_of_parameters
from .peft_tensors import (
    MORE,
    PARTS,
    PREFIX,
    TABLE_PARTS,
    Updates,
    fit_to_model,
    refuse_other_padding,
    split_tensors,
)
from .peft_whole import described_task, whole_beside

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["read_lora", "save_peft"]


def save_peft(model: PreTrainedModel, folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Write a LoRA adapter, and the trained head if there is one, as peft does: ``PeftModel.from_pretrained`` reads it.

    One that shares its matrices with others (MTL-LoRA) is written as the LoRA that it computes.

    Args:
        model: With the adapter attached.
        folder: Made if it is missing; a folder that ``hfadapt.save`` wrote is left alone.
        name: Of the adapter; may be left out where there is one.

    Raises:
        AttachError: there is no such adapter, or it is more than peft's LoRA can say.
        CheckpointError: the folder holds an adapter of hfadapt's, or cannot be written; or the base trains.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    require_loadable(model, folder, name, besides=head_modules(model))
    name, config = _plain_lora(model, name)
    refuse_own_folder(folder)
    deltas = [delta for _, delta in deltas_of(model, name)]
    tensors: dict[str, Tensor] = {}
    for delta in deltas:
        if delta.site.part is not None:
            raise AttachError(
                "peft cannot say that an update changes a slice of a fused linear",
                where=f"adapter {name!r}, {delta.site.leaf}",
                got=f"outputs {delta.site.part[1]} to {delta.site.part[2]} of each of {delta.site.part[0]} blocks",
                allowed="LoRAs of whole linears",
                try_=f"target_modules=({delta.site.leaf.rpartition('.')[2]!r},) for all of it",
            )
        if delta.site.parameter:
            continue
        assert isinstance(delta, LoRADelta)
        names = TABLE_PARTS if delta.site.slot == "table" else PARTS
        for theirs, tensor in zip(names.values(), delta.matrices(name), strict=True):
            tensors[f"{PREFIX}{delta.site.leaf}{theirs}"] = tensor
        if delta.site.window:
            refuse_other_padding(model.get_submodule(delta.site.leaf), delta.site.leaf, AttachError)
            b = f"{PREFIX}{delta.site.leaf}{PARTS['lora_b']}"
            tensors[b] = tensors[b].reshape(*tensors[b].shape, *(1 for _ in delta.site.window))
        if config.bias:
            tensors[f"{PREFIX}{delta.site.leaf}{MORE['lora_bias']}"] = delta.own(name).lora_bias
        if config.dora:
            lengths = row_norms(weight_of(model.get_submodule(delta.site.leaf)))
            tensors[f"{PREFIX}{delta.site.leaf}{MORE['magnitude']}"] = delta.own(name).magnitude * lengths
    parameters = [delta for delta in deltas if isinstance(delta, ParameterDelta)]
    tensors |= tensors_of_parameters(model, parameters, name)
    patterns: dict[str, dict[str, Any]] = {"rank_pattern": {}, "alpha_pattern": {}}
    for delta in deltas:
        other = delta.config(name)
        if (other.r, other.lora_alpha) != (config.r, config.lora_alpha):
            patterns["rank_pattern"][re.escape(path_of(delta.site))] = other.r
            patterns["alpha_pattern"][re.escape(path_of(delta.site))] = other.lora_alpha
    changed = [delta.site.leaf for delta in deltas]
    whole, own = whole_beside(model, name, changed)
    tensors |= {f"{PREFIX}{key}": value for key, value in own.items()}
    leaves = [delta.site.leaf for delta in deltas if not delta.site.parameter]
    linears = [model.get_submodule(delta.site.leaf) for delta in deltas if delta.site.slot == "linear"]
    described = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  (peft itself reads fractions)
        lora_dropout=config.dropout,
        target_modules=leaves,
        target_parameters=[path_of(delta.site) for delta in parameters] or None,
        use_rslora=config.use_rslora,
        use_dora=config.dora,
        lora_bias=config.bias,
        rank_pattern=patterns["rank_pattern"],
        alpha_pattern=patterns["alpha_pattern"],
        # transformers' Conv1D keeps its weight as [in, out]
        fan_in_fan_out=bool(linears) and all(not hasattr(linear, "in_features") for linear in linears),
        modules_to_save=whole or None,
        task_type=described_task(model, changed),
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
            "which adapter?",
            where="save_peft",
            got="no name",
            allowed=", ".join(state.names),
            try_=f"name={state.names[0]!r}" if state.names else "hfadapt.attach(model, 'lora') first",
        )
    adapter = state.require(name or state.names[0])
    configs = [config.as_lora() for config in adapter.configs if isinstance(config, LinearUpdate)]
    # peft has ranks and scales by module, and one of everything else
    alike = {replace(config, r=1, lora_alpha=1.0, target_modules=("query",)) for config in configs}
    if len(configs) != len(adapter.configs) or len(alike) != 1 or configs[0].gate != "none":
        raise AttachError(
            "only a LoRA without a gate can be written in peft's files",
            where=f"adapter {adapter.name!r}",
            got=" + ".join(str(one) for one in adapter.configs),
            allowed="LoRA configs that differ in r, lora_alpha and target_modules alone, with gate='none'",
            try_="hfadapt.save(model, folder) writes any adapter",
        )
    return adapter.name, configs[0]


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
    announced = {"lora_bias": fields.lora_bias, "magnitude": fields.use_dora, "base_bias": fields.biases}
    own, saved, tensors = take_parameters(model, tensors, fields, folder)
    split = split_tensors(tensors, folder, [part for part, on in announced.items() if on], empty=bool(own))
    updates, others, paths = fit_to_model(model, *split, fields, folder)
    updates, paths = updates | own, paths | saved
    groups: dict[LoRA, list[str]] = {}
    for leaf, parts in updates.items():
        bias = "lora_bias" in parts or "base_bias" in parts
        if leaf not in paths:  # its bias alone, where all of the base's were trained
            form = LoRA(1, 1.0, ("query",), bias=True)
        else:
            form = LoRA(
                r=fields.rank(paths[leaf]),
                lora_alpha=fields.alpha(paths[leaf]),
                target_modules=("query",),
                dropout=fields.lora_dropout,
                use_rslora=fields.use_rslora,
                bias=bias,
                dora=fields.use_dora,
            )
        groups.setdefault(form, []).append(leaf)
        if leaf in own:
            continue
        if form.dora and not is_linear(model.get_submodule(leaf)):
            raise CheckpointError(
                "DoRA of a table of vectors or of a convolution",
                where=str(folder),
                got=f"{leaf}, a {type(model.get_submodule(leaf)).__name__}",
                allowed="DoRA of linears",
                try_="merge it with peft (merge_and_unload) and adapt what comes out",
            )
        updates[leaf] = _own_parts(model.get_submodule(leaf), parts, form, folder)
    configs = tuple(replace(form, target_modules=tuple(leaves)) for form, leaves in groups.items())
    return Described(name, configs, partial(_weights, updates=updates, folder=folder), others)


def _own_parts(linear: nn.Module, parts: dict[str, Tensor], form: LoRA, folder: Path) -> dict[str, Tensor]:
    """Return the tensors of our parameters: a trained bias of the base is one of the update, lengths are factors."""
    made = {part: parts[part] for part in ("lora_a", "lora_b")}
    if form.bias:
        bias = parts.get("lora_bias", torch.zeros(())).double()
        if "base_bias" in parts:
            base = getattr(linear, "bias", None)
            if base is None or base.shape != parts["base_bias"].shape:
                raise CheckpointError(
                    "the file has biases that the base's linears have not",
                    where=str(folder),
                    got=f"a bias {list(parts['base_bias'].shape)}",
                    allowed=f"{list(base.shape)}" if base is not None else "none on this linear",
                    try_="load it on the base that was adapted",
                )
            bias = bias + (parts["base_bias"].double() - base.detach().double().cpu()) / form.scale
        made["lora_bias"] = bias  # as many digits as the parameter that takes it
    if form.dora:
        norms = row_norms(weight_of(linear).double().cpu())
        lengths = parts["magnitude"].flatten().double()
        if lengths.shape != norms.shape:
            raise CheckpointError(
                "DoRA's lengths are of another base",
                where=str(folder),
                got=list(lengths.shape),
                allowed=f"{list(norms.shape)}, one length a row of the base's weight",
                try_="load it on the base that was adapted",
            )
        made["magnitude"] = lengths / norms
    return made


def _weights(model: PreTrainedModel, name: str, updates: Updates, folder: Path) -> dict[str, Tensor]:
    deltas = list(deltas_of(model, name))
    more = {path_of(delta.site) for _, delta in deltas} - set(updates)
    if more:
        # Names of modules are matched by their end, and a whole path may be the end of a longer one.
        got = f"{sorted(more)[0]} is meant by the same name as a linear of the file"
        raise CheckpointError(
            "linears cannot be told apart by their paths",
            where=str(folder),
            got=got,
            allowed="paths none of which is the end of another's",
            try_="merge it with peft (merge_and_unload) and adapt what comes out",
        )
    return {
        f"{path}.adapters.{name}.{part}": tensor
        for path, delta in deltas
        for part, tensor in updates[path_of(delta.site)].items()
    }
