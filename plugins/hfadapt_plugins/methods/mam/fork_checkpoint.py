"""Reads what the unified view's own code trained: ``load_unify``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfadapt import parameters_of
from hfadapt.adapters.formats import (
    Described,
    FolderContent,
    head_modules,
    put_on,
    read_pickle,
    read_safetensors,
    require_folder,
)
from hfadapt.errors import CheckpointError, ConfigError

from .fork_names import UNREAD, parameter_map
from .fork_options import ARCHITECTURES, configs_of, read_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_unify"]

_WHERE = "load_unify"
_BASE = "pretrained_model."
# Tables that a release keeps as buffers and another works out.
_BUFFERS = re.compile(r".*(position_ids|final_logits_bias)")


def load_unify(
    checkpoint: str | os.PathLike[str],
    options: Mapping[str, Any],
    model: PreTrainedModel,
    *,
    name: str = "default",
) -> PreTrainedModel:
    """Put what the code of He et al. 2022 trained on its base (github.com/jxhe/unify-parameter-efficient-tuning).

    MAM, prefixes (with their network or without, added in any of its forms), parallel, sequential and Pfeiffer
    adapters, scaled ones, multi-head parallel adapters and LoRA, on RoBERTa, BART and mBART.

    Args:
        checkpoint: ``pytorch_model.bin`` of a run. A name that ends in ``.safetensors`` is read as such; any other is a
            pickle, of which tensors alone are opened (``weights_only=True``).
        options: The run's arguments of ``petl/options.py``, by name: ``{"attn_mode": "prefix", "attn_bn": 30, ...}``.
            Those that are left out have the defaults of that file.
        model: The base, with the class that the run had: the file holds the base too, and must agree with it in all but
            the head, of which the adapter gets a copy with the file's weights.
        name: Of the adapter.

    Returns:
        ``model``, adapted.

    Raises:
        CheckpointError: the file is missing or damaged, is of another base, or is not what the options make.
        ConfigError: an option is unknown, or what it says cannot be read.
    """
    path = require_folder(checkpoint, where=_WHERE)
    if not isinstance(options, Mapping):
        allowed = "the arguments by name: {'attn_mode': 'prefix', ...}"
        cure = "vars(args) of the run, less what is no option of petl/options.py"
        raise ConfigError("no options", where=_WHERE, got=repr(options)[:80], allowed=allowed, try_=cure)
    chosen = read_options(options, _WHERE)
    arch = getattr(getattr(model, "config", None), "model_type", None)
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            "not a base of the unified view's code",
            where=_WHERE,
            got=repr(arch if arch is not None else model)[:80],
            allowed=", ".join(ARCHITECTURES),
            try_="RobertaForSequenceClassification or BartForConditionalGeneration.from_pretrained(...)",
        )
    configs = configs_of(arch, chosen)
    if not configs:
        raise ConfigError(
            "these options adapt nothing",
            where=_WHERE,
            got="attn_mode and ffn_mode are 'none'",
            allowed="attn_mode or ffn_mode of the run",
            try_="options={'attn_mode': 'prefix', 'attn_bn': 30, 'ffn_mode': 'adapter', ...}, as on its command line",
        )
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    new, base = _split(tensors)
    unread = re.compile(UNREAD[arch])

    def weights(adapted: PreTrainedModel, adapter: str) -> dict[str, Tensor]:
        pairs = parameter_map(adapted, arch, adapter)
        _require_same_keys({key for key in new if key in pairs or not unread.search(key)}, set(pairs), path)
        ours = {id(p): key for key, p in parameters_of(adapted, adapter, own_modules=False).items()}
        found = {}
        for key, pair in pairs.items():
            if pair.to_fork(pair.parameter).numel() != new[key].numel():
                got = f"{key}: saved {list(new[key].shape)}, here {list(pair.to_fork(pair.parameter).shape)}"
                raise CheckpointError(
                    "not what the options make",
                    where=str(path),
                    got=got,
                    allowed="tensors of the sizes that attn_bn, ffn_bn and mid_dim say",
                    try_="attn_bn, ffn_bn and mid_dim as that run had them",
                )
            found[ours[id(pair.parameter)]] = pair.from_fork(new[key]).reshape(pair.parameter.shape).contiguous()
        return found

    head = _head_of(model, base, path)
    put_on(model, FolderContent((Described(name, configs, weights, head),)), path)
    return model


def _split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the fork added to a stock model, and the stock model's own tensors."""
    new, base = {}, {}
    for key, tensor in tensors.items():
        key = key.removeprefix("module.").removeprefix(_BASE)
        (new if "ef_" in key or key.startswith("prompt_model.") else base)[key] = tensor
    return new, base


def _head_of(model: PreTrainedModel, base: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the file's head, after the rest of the base was found to be the model's.

    Raises:
        CheckpointError: it is another base, or another class of it.
    """
    heads = tuple(f"{one}." for one in head_modules(model))
    own = {key: t for key, t in model.state_dict().items() if ".hfadapt" not in f".{key}" and not _BUFFERS.match(key)}
    # Tied tensors stand under one of their names, and the fork's file holds all.
    wrong = []
    for key, tensor in base.items():
        if _BUFFERS.match(key):
            continue
        if key not in own:
            wrong.append(f"unexpected {key}")
        elif own[key].shape != tensor.shape:
            wrong.append(f"{key}: saved {list(tensor.shape)}, here {list(own[key].shape)}")
        elif not key.startswith(heads) and not torch.allclose(tensor.to(own[key]), own[key], rtol=1e-5, atol=1e-6):
            wrong.append(f"{key}: other numbers")
    lost = [key for key in own if key.startswith(heads) and key not in base] if heads else []
    wrong += [f"missing {key}" for key in lost]
    if wrong or not base:
        raise CheckpointError(
            "the checkpoint is of another base, or trained parts of it that are no head",
            where=str(path),
            got="; ".join(wrong[:5]) or f"no {_BASE}... tensors",
            allowed=f"the weights of this {type(model).__name__}, in all but {', '.join(heads) or 'nothing'}",
            try_="the base that the run named, in the class that it had",
        )
    return {key: tensor for key, tensor in base.items() if key.startswith(heads)} if heads else {}


def _require_same_keys(there: set[str], here: set[str], path: Path) -> None:
    """Raise unless the file holds what the options make, and nothing else."""
    found = [f"missing {key}" for key in sorted(here - there)] + [f"unexpected {key}" for key in sorted(there - here)]
    if found:
        raise CheckpointError(
            f"{len(found)} tensors differ from what the options make",
            where=str(path),
            got="; ".join(found[:6]),
            allowed=", ".join(sorted(here)[:3]) + f" and so on, {len(here)} tensors",
            try_="the arguments of that run",
        )
