"""Reading the folder of adapters that ``save`` wrote: tried on an empty copy first, then put on the base whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import plugins
from ..errors import CheckpointError
from ..method.method import expand
from ..routing.composition import Fuse, parse
from ..runtime.attachment import attachment, find_attachment
from .activate import activate, compose, set_adapter_drop
from .attach import attach
from .base_identity import TOKENS, check_base, dtype_option, label_options, restore_tokens
from .base_model import load_base
from .beside_peft import check_peft
from .files import check_digest, read_config, read_tensors
from .folder_checks import joining_method, refuse_taken
from .mapping import find_map
from .own_files import autocast_of, fit_heads, options_of, own_targets, without_heads
from .renaming import renamed
from .restore import all_or_nothing, as_described, meta_copy, rehearsal
from .router import restore_routers
from .saved_tensors import check_tensors, fill, parameters_of_others, require_agreeing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..architecture import ArchitectureMap

from .save import prefix_of, saved_parameters

__all__ = ["check_base_of", "load_adapters", "put_back", "restore_choice", "restore_fusions"]


def restore_fusions(model: PreTrainedModel, data: Mapping[str, Any]) -> None:
    """Make the fusion layers that ``hfadapt_config.json`` names."""
    for entry in data.get("fusions", ()):
        fields = {k: v for k, v in entry.items() if k not in ("adapters", "kept")}
        method = joining_method(entry["method"], "hfadapt_config.json, fusions")
        method.restore(model, Fuse(*entry["adapters"]), fields, entry["kept"])


def load_adapters(
    folder: str | os.PathLike[str],
    model: PreTrainedModel | None = None,
    *,
    strict: bool = True,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Put the adapters of an adapter folder on a base.

    Args:
        folder: Written by ``save``.
        model: The base; by default the one named in the folder, with ``from_pretrained``.
        strict: Every key must be there, with its shape, and no other; and the base's config must be the same in all
            that decides shapes and computation. Otherwise fields may differ that no stock code reads.
        name: What to call the folder's only adapter here.
        options: Further arguments of the ``from_pretrained`` of the base that is named.

    Returns:
        ``model`` (or the new one), adapted; adapters that were there stay.

    Raises:
        CheckpointError: the files are damaged, belong to another base, or differ from what the configs make.
    """
    data = read_config(folder)
    tensors = read_tensors(folder, data.get("weights_sha256"))
    if model is None:
        given = options or {}
        dtype = {} if "torch_dtype" in given else dtype_option(data, folder)
        of_base = {**dtype, **(label_options(data) if data.get("head") else {}), **given}
        named = data.get("base_model_name_or_path")
        model = load_base(folder, data["model_class"], named, of_base, brought=tensors)
        with as_described(folder):
            restore_tokens(model, data, tensors, folder)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(TOKENS)}
    described: Mapping[str, Any] = data
    if name is not None:
        if len(data["adapters"]) != 1:
            got = ", ".join(data["adapters"])
            raise CheckpointError(
                "which of the folder's adapters has that name?",
                where=str(folder),
                got=got,
                allowed="a folder of one adapter, where it is to be named anew",
                try_="leave name out: each keeps the name that it was saved under",
            )
        described, tensors = renamed(data, tensors, next(iter(data["adapters"])), name)
    put_back(folder, described, tensors, model, strict=strict, whole=data)
    return model.eval()


def put_back(
    folder: str | os.PathLike[str],
    data: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: PreTrainedModel,
    *,
    strict: bool = True,
    whole: Mapping[str, Any] | None = None,
) -> None:
    """Put the adapters that a folder describes on a base, all or nothing.

    Args:
        folder: For errors.
        data: What ``hfadapt_config.json`` says, or a part of it.
        tensors: Those of the adapters in it.
        model: The base; adapters that were there stay.
        strict: See `load_adapters`.
        whole: The file's whole content, where ``data`` is a part of it.

    Raises:
        CheckpointError: see `load_adapters`.
    """
    check_base_of(data, model, folder, strict)
    had = find_attachment(model)
    refuse_taken(data["adapters"], () if had is None else had.names, folder)
    names = list(data["adapters"])
    with as_described(folder):
        # Of the model itself: its copy has no weights with which it could be probed.
        described = [configs for configs in data["adapters"].values() if configs]  # none: copied modules alone
        methods = [(plugins.methods()[c.method], c) for configs in described for c in expand(configs)]
        arch = find_map(model, had, methods, None)
    with rehearsal(folder):
        twin = meta_copy(model, joins=False)  # a folder's fusion layers and routers are over its own adapters
        _restore(twin, data, tensors, arch)
        theirs = without_heads(data, tensors, model)
        check_tensors(_targets(twin, theirs, names), theirs, folder, strict=strict)
    check_digest(data if whole is None else whole, folder)
    with all_or_nothing(model):
        _restore(model, data, tensors, arch)
        targets = _targets(model, theirs, names)
        require_agreeing(targets, theirs, parameters_of_others(model, names), folder)
        fill(targets, theirs)


def _restore(
    model: PreTrainedModel, data: Mapping[str, Any], tensors: Mapping[str, Tensor], arch: ArchitectureMap
) -> None:
    """Attach what ``hfadapt_config.json`` describes; its weights are still to come."""
    fresh = find_attachment(model) is None
    groups: dict[str, list[str]] = {}
    for name, configs in data["adapters"].items():
        groups.setdefault(json.dumps([configs, options_of(data, name, model)], sort_keys=True), []).append(name)
    autocast = autocast_of(model, tensors.values()) if fresh else None
    for group, names in groups.items():
        configs, options = json.loads(group)
        attach(model, configs, names=names, verify=False, autocast_adapter_dtype=autocast, arch=arch, **options)
    restore_fusions(model, data)
    restore_routers(model, data)
    for name, tree in data.get("compositions", {}).items():
        compose(model, name, parse(tree))  # type: ignore[arg-type]
    fit_heads(model, list(data["adapters"]), tensors)
    if fresh:
        restore_choice(model, data)


def restore_choice(model: PreTrainedModel, data: Mapping[str, Any]) -> None:
    """Let a model that had no adapters use those that were active when a folder was saved, in the same layers.

    Raises:
        HFAdaptError: the folder names what the model has not.
    """
    if data.get("active") in attachment(model).routable:
        attachment(model).active = data["active"]
    if "active_composition" in data:
        activate(model, parse(data["active_composition"]))
    if "drop" in data:
        set_adapter_drop(model, data["drop"])


def check_base_of(data: Mapping[str, Any], model: PreTrainedModel, folder: Any, strict: bool = True) -> None:
    """Raise ``CheckpointError`` unless ``model`` is the base that the folder's adapters belong to."""
    kind = find_map(model, find_attachment(model), (), None).model_type
    check_base(data, model, kind, folder, strict)
    check_peft(data, model, folder)


def _targets(model: PreTrainedModel, tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, list[Tensor]]:
    """Return what the saved tensors of attached adapters and their own modules go into, by their keys in the file."""
    prefix = prefix_of(model)
    targets: dict[str, list[Tensor]] = {**own_targets(model, names, tensors, prefix)}
    for key, parameter in saved_parameters(model, names, own_modules=False).items():
        targets[key.removeprefix(prefix)] = [parameter]
    return targets
