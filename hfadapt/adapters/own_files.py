"""Adapters' own modules in the files of a folder.

The head of a folder's only adapter stands there as ``head.PATH``, as in the first version of the format, where all
adapters of a folder had one head: reading, each gets that one. The heads of several adapters, and other modules of
their own, stand under their names in the model, ``PATH.hfadapt.copies.ADAPTER.KEY``, and ``own_modules`` of
``hfadapt_config.json`` lists their paths (version 2).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..runtime.attachment import Attachment, attachment, copies_of
from .files import FIRST_VERSION, FORMAT_VERSION
from .freeze import head_modules
from .own_copies import own_tensors, resize_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "autocast_of",
    "describe_own",
    "fit_heads",
    "names_of_own",
    "options_of",
    "own_targets",
    "own_to_save",
    "without_heads",
]

logger = logging.getLogger(__name__)

_HEAD = "head."
_KEY = "own_modules"


def describe_own(state: Attachment, chosen: list[str], prefix: str) -> dict[str, Any]:
    """Return what ``hfadapt_config.json`` says of the own modules of the adapters ``chosen``, and its version.

    Args:
        state: What is attached to the model.
        chosen: The adapters that are saved.
        prefix: Path of the base model, which paths in a folder do not begin with.
    """
    heads = {name: state.adapters[name].heads for name in chosen}
    modules = {name: state.adapters[name].modules for name in chosen}
    head = list(dict.fromkeys(path for paths in heads.values() for path in paths))
    if _is_plain(state, chosen):
        return {"format_version": FIRST_VERSION, "head": head}
    fusions = {node.key: fusion.heads for node, fusion in state.fusions.items() if set(node.children) <= set(chosen)}
    listed = {
        owner: {"heads": list(paths), "modules": [path.removeprefix(prefix) for path in modules.get(owner, ())]}
        for owner, paths in {**heads, **fusions}.items()
    }
    return {"format_version": FORMAT_VERSION, "head": head, _KEY: listed}


def _is_plain(state: Attachment, chosen: list[str]) -> bool:
    adapters = [state.adapters[name] for name in chosen]
    return not any(a.modules for a in adapters) and (len(adapters) == 1 or not any(a.heads for a in adapters))


def own_to_save(
    model: PreTrainedModel, chosen: list[str], prefix: str, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of own modules that a save writes, by their key in the file.

    Args:
        model: An adapted model.
        chosen: The adapters that are saved.
        prefix: Path of the base model, which keys do not begin with.
        weights: Tensors to take in place of the model's, by the model's own names.
    """
    state = attachment(model)
    plain = _is_plain(state, chosen)
    found: dict[str, Tensor] = {}
    for owner in _owners(state, chosen):
        for path, key, tensor in own_tensors(model, owner):
            tensor = weights.get(_name(False, owner, path, key), tensor)
            found[_name(plain, owner, path, key, prefix)] = tensor.detach()
    return found


def names_of_own(model: PreTrainedModel, chosen: list[str], prefix: str) -> dict[str, str]:
    """Return, for each tensor of `own_to_save`, its key in the file and its key in ``model.state_dict()``."""
    state = attachment(model)
    plain = _is_plain(state, chosen)
    return {
        _name(plain, owner, path, key, prefix): _name(False, owner, path, key)
        for owner in _owners(state, chosen)
        for path, key, _ in own_tensors(model, owner)
    }


def _name(plain: bool, owner: str, path: str, key: str, prefix: str = "") -> str:
    return f"{_HEAD}{path}.{key}" if plain else f"{path}.hfadapt.copies.{owner}.{key}".removeprefix(prefix)


def _owners(state: Attachment, chosen: list[str]) -> list[str]:
    return [*chosen, *(node.key for node in state.fusions if set(node.children) <= set(chosen))]


def options_of(data: Mapping[str, Any], name: str, model: PreTrainedModel) -> dict[str, Any]:
    """Return the arguments of ``attach`` that make the own modules of a saved adapter.

    Args:
        data: ``hfadapt_config.json``.
        name: The adapter.
        model: The base; what it has no head for is left out.
    """
    if _KEY not in data:
        return {"train_head": bool(data.get("head")) or None}
    own = data[_KEY].get(name, {})
    inside = "" if getattr(model, "base_model", model) is model else f"{model.base_model_prefix}."
    names = {path for path, _ in model.named_modules()}
    modules = [f"{inside}{path}" if f"{inside}{path}" in names else path for path in own.get("modules", ())]
    return {"train_head": bool(own.get("heads")), "modules_to_save": tuple(modules)}


def without_heads(data: Mapping[str, Any], tensors: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Leave the heads' tensors out where the model has no head: adapters move between models with and without one."""
    if head_modules(model):
        return dict(tensors)
    heads = {f"{path}." for own in data.get(_KEY, {}).values() for path in own.get("heads", ())}
    kept = {key: t for key, t in tensors.items() if _of_a_delta(key) or not key.startswith((_HEAD, *heads))}
    if len(kept) < len(tensors):
        logger.warning(
            "%s has no head: the folder's (%s) is left out, and the adapters change what the model returns",
            type(model).__name__,
            ", ".join(sorted(tensors.keys() - kept.keys())),
        )
    return kept


def own_targets(
    model: PreTrainedModel, chosen: list[str], tensors: Mapping[str, Tensor], prefix: str
) -> dict[str, list[Tensor]]:
    """Return the tensors of own modules into which those of a file go, by their key there."""
    state = attachment(model)
    plain = _holds_one_head(tensors)
    if not plain and not any(".hfadapt.copies." in key for key in tensors):
        return {}  # saved of a model without a head: the heads stay as the base's is
    found: dict[str, list[Tensor]] = {}
    for owner in _owners(state, chosen):
        for path, key, tensor in own_tensors(model, owner):
            found.setdefault(_name(plain, owner, path, key, prefix), []).append(tensor)
    return found


def _holds_one_head(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(_HEAD) and not _of_a_delta(key) for key in tensors)


def _of_a_delta(key: str) -> bool:
    """Say whether a tensor is an adapter's at a module, which a base may call ``head`` as well."""
    return ".hfadapt.deltas." in key


def fit_heads(model: PreTrainedModel, chosen: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Give adapters' own heads as many outputs as the saved ones have: labels are a task's, not the base's."""
    state = attachment(model)
    plain = _holds_one_head(tensors)
    for owner in _owners(state, chosen):
        for path, _ in list(copies_of(model, owner)):
            saved = tensors.get(_name(plain, owner, path, "weight"))
            if saved is not None:
                resize_outputs(model, owner, path, saved.shape)


def autocast_of(model: PreTrainedModel, tensors: Iterable[Tensor]) -> bool:
    """Say whether adapters that were saved are kept in float32: not those that have the base's own lower precision."""
    base = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    saved = {t.dtype for t in tensors if t.is_floating_point()}
    return base.itemsize >= torch.float32.itemsize or saved != {base}
