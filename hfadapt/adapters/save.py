"""Adapters on disk: one folder, safetensors and JSON, written atomically and read strictly.

``adapter_config.json`` holds the format's version, the adapters' configs, compositions, the base it belongs to and the
library versions; ``adapter_model.safetensors`` holds every parameter once, tied ones included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import CheckpointError, problem
from ..errors.names import names_of
from ..routing.composition import Fuse, parse, to_json
from ..runtime.attachment import attachment, find_attachment, parameters_of, uncompiled
from ..runtime.watch import require_intact
from .activate import compose
from .atomic import atomic_folder
from .attach import attach
from .base_identity import TOKENS, check_base, describe_base, label_options, restore_tokens, token_rows
from .files import check_digest, outdated, read_config, read_tensors, refuse_foreign, write_files
from .folder_config import HFAdaptConfig
from .own_files import autocast_of, describe_own, fit_heads, options_of, own_targets, own_to_save, without_heads
from .restore import all_or_nothing, as_described, meta_copy, rehearsal
from .save_hooks import SIDE_FOLDER, base_beside, is_whole
from .saved_tensors import check_tensors, fill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load", "save"]


def _versions() -> dict[str, str]:
    found = {}
    for package in ("hfadapt", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            from ..errors.version import __version__

            found[package] = __version__ if package == "hfadapt" else "unknown"
    return found


def _prefix(model: PreTrainedModel) -> str:
    base = getattr(model, "base_model", model)
    return "" if base is model else f"{model.base_model_prefix}."


def _chosen(model: PreTrainedModel, names: str | Iterable[str] | None) -> list[str]:
    """Return the names of the adapters that are asked for; raise where one is not attached."""
    state = attachment(model)
    chosen = list(state.names if names is None else names_of(names))
    for name in chosen:
        state.require(name)
    return chosen


def state_of(
    model: PreTrainedModel, names: Iterable[str] | None = None, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return what a save writes: parameters of the adapters, relative to the base model, and their own modules.

    Args:
        model: An adapted model.
        names: The adapters; all by default.
        weights: Tensors to take in place of the model's, by the model's own names (gathered from shards).
    """
    chosen = _chosen(model, names)
    prefix = _prefix(model)
    given = {} if weights is None else weights
    tensors: dict[str, Tensor] = {}
    require_intact(attachment(model), chosen)
    for name in chosen:
        for key, parameter in parameters_of(model, name, own_modules=False).items():
            tensors[key.removeprefix(prefix)] = given.get(key, parameter).detach()
    for path, delta in _fusions(model, chosen):
        for key, parameter in delta.named_parameters():
            full = f"{path}.{key}"
            tensors[full.removeprefix(prefix)] = given.get(full, parameter).detach()
    return tensors | own_to_save(model, chosen, prefix, given)


def _fusions(model: PreTrainedModel, names: Iterable[str] | None = None) -> list[tuple[str, nn.Module]]:
    from ..runtime.attachment import slots_of
    from ..runtime.slot import fused_node

    names = None if names is None else tuple(names)
    return [
        (f"{path}.hfadapt.fusions.{key}", fusion)
        for path, slot in slots_of(model)
        for key, fusion in slot.fusions.items()
        if names is None or all(n in names for n in fused_node(key).split(","))
    ]


def restore_fusions(model: PreTrainedModel, data: Mapping[str, Any]) -> None:
    """Make the fusion layers that ``adapter_config.json`` names."""
    from .. import plugins

    for entry in data.get("fusions", ()):
        fields = {k: v for k, v in entry.items() if k not in ("adapters", "kept")}
        plugins.methods()[entry["method"]].restore_fusion(model, Fuse(*entry["adapters"]), fields, entry["kept"])


def describe(model: PreTrainedModel, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``."""
    state = attachment(model)
    chosen = _chosen(model, names)
    return {
        "format": "hfadapt",
        **describe_own(state, chosen, _prefix(model)),
        **describe_base(model, state.arch.model_type),
        "adapters": {n: [c.to_dict() for c in state.require(n).configs] for n in chosen},
        "compositions": {
            k: to_json(v) for k, v in state.compositions.items() if not k.startswith("_") and _covered(v, chosen)
        },
        "fusions": [
            {**f.config.to_dict(), "adapters": list(node.children), "kept": {k: list(v) for k, v in f.kept.items()}}
            for node, f in state.fusions.items()
            if _covered(node, chosen)
        ],
        "active": state.active if isinstance(state.active, str) and state.active in chosen else None,
        "versions": _versions(),
    }


def _covered(node: Any, names: list[str]) -> bool:
    from ..routing.composition import adapter_names

    return all(n in names for n in adapter_names(node))


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    names: str | Iterable[str] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
    card: Callable[[Path], None] | None = None,
) -> Path:
    """Write the adapters (and the task head) of ``model`` to ``folder``; the base is not written.

    Args:
        model: An adapted model.
        folder: Made if it is missing; an interrupted save leaves it as it was. What hfadapt saved there before is
            replaced, files of others are kept.
        names: The adapters, or the name of one; all by default.
        extra: Further keys of ``adapter_config.json`` (tasks and heads of a multi-task model).
        extra_tensors: Further tensors.
        card: Called with the temporary folder, to add a model card or other files.

    Raises:
        CheckpointError: the files cannot be written, or the folder holds a model or an adapter of another library's.
        AttachError: nothing is attached, or an adapter is unknown.
    """
    model = uncompiled(model)
    refuse_foreign(folder)
    with atomic_folder(folder, dropped=outdated(folder)) as temporary:
        write(model, temporary, names, extra=extra, extra_tensors=extra_tensors)
        if card is not None:
            card(temporary)
    return Path(folder)


def write(
    model: PreTrainedModel,
    folder: Path,
    names: Iterable[str] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what ``save`` writes into a folder that nobody reads yet.

    Args:
        model: An adapted model.
        folder: Which is there, and empty.
        names: The adapters; all by default.
        extra: Further keys of ``adapter_config.json``.
        extra_tensors: Further tensors.
        weights: Tensors to take in place of the model's, by the model's own names (gathered from shards).
    """
    chosen = _chosen(model, names)
    config = {**describe(model, chosen), **(extra or {})}
    tensors = {**state_of(model, chosen, weights), **token_rows(model), **(extra_tensors or {})}
    # AutoModel takes a folder without it for peft's and fails on it with errors that help nobody
    marker = HFAdaptConfig(config["base_model_name_or_path"], base_class=config["model_class"])
    marker.save_pretrained(folder)
    write_files(folder, config, {k: t.contiguous().cpu() for k, t in tensors.items()})


def load(
    folder: str | os.PathLike[str], model: PreTrainedModel | None = None, *, strict: bool = True
) -> PreTrainedModel:
    """Put saved adapters on a base.

    Args:
        folder: Written by ``save``; or by ``save_pretrained`` of an adapted model, as Trainer and other libraries call
            it, which holds the base too.
        model: The base; by default the one named in the folder, with ``from_pretrained``.
        strict: Every key must be there, with its shape, and no other; and the base's config must be the same in all
            that decides shapes and computation. Otherwise fields may differ that no stock code reads.

    Returns:
        ``model`` (or the new one), adapted; adapters that were there stay.

    Raises:
        CheckpointError: the files are damaged, belong to another base, or differ from what the configs make.
    """
    if is_whole(folder):
        base = base_beside(folder, model)
        return load(Path(folder) / SIDE_FOLDER, base, strict=strict)
    data = read_config(folder)
    tensors = read_tensors(folder, data.get("weights_sha256"))
    if "multi_task" in data:
        from ..multitask.model import MultiTaskModel

        if model is None or isinstance(model, MultiTaskModel):
            return MultiTaskModel.from_pretrained(str(folder))
    if model is None:
        model = _base(data, folder)
        with as_described(folder):
            restore_tokens(model, data, tensors, folder)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(TOKENS)}
    check_base_of(data, model, folder, strict)
    had = find_attachment(model)
    clash = [n for n in data["adapters"] if had is not None and n in had.names]
    if clash:
        raise CheckpointError(
            problem(
                "adapters of these names are attached already", where=str(folder), got=clash, try_="detach them first"
            )
        )
    names = list(data["adapters"])
    with rehearsal(folder):
        twin = meta_copy(model)
        _restore(twin, data, tensors)
        theirs = without_heads(data, tensors, model)
        check_tensors(_targets(twin, theirs, names), theirs, folder, strict=strict)
    check_digest(data, folder)
    with all_or_nothing(model):
        _restore(model, data, tensors)
        fill(_targets(model, theirs, names), theirs)
    return model.eval()


def _restore(model: PreTrainedModel, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Attach what ``adapter_config.json`` describes; its weights are still to come."""
    groups: dict[str, list[str]] = {}
    for name, configs in data["adapters"].items():
        groups.setdefault(json.dumps([configs, options_of(data, name, model)], sort_keys=True), []).append(name)
    autocast = autocast_of(model, tensors.values()) if find_attachment(model) is None else None
    for group, names in groups.items():
        configs, options = json.loads(group)
        attach(model, configs, names=names, verify=False, autocast_adapter_dtype=autocast, **options)
    restore_fusions(model, data)
    for name, tree in data.get("compositions", {}).items():
        compose(model, name, parse(tree))  # type: ignore[arg-type]
    fit_heads(model, list(data["adapters"]), tensors)
    if data.get("active") in attachment(model).routable:
        attachment(model).active = data["active"]


def model_class(name: str, folder: Any) -> type[PreTrainedModel]:
    """Return the class of transformers' that a folder names.

    Raises:
        CheckpointError: it has none of that name, or the name is no model's.
    """
    import transformers

    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(
            problem(
                "the base's class is no model of transformers",
                where=str(folder),
                got=repr(name),
                try_="hfadapt.load(folder, model=base)",
            )
        )
    return found


def _base(data: Mapping[str, Any], folder: Any) -> PreTrainedModel:
    name = data.get("base_model_name_or_path")
    cls = model_class(data["model_class"], folder)
    if not name:
        raise CheckpointError(
            problem(
                "the base is not known",
                where=str(folder),
                got=f"base {name!r}, class {data.get('model_class')!r}",
                try_="hfadapt.load(folder, model=base)",
            )
        )
    try:
        return cls.from_pretrained(name, **(label_options(data) if data.get("head") else {}))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            problem(
                "the base cannot be loaded",
                where=str(folder),
                got=f"{name!r}: {error}",
                try_="hfadapt.load(folder, model=base)",
            )
        ) from error


def check_base_of(data: Mapping[str, Any], model: PreTrainedModel, folder: Any, strict: bool = True) -> None:
    """Raise ``CheckpointError`` unless ``model`` is the base that the folder's adapters belong to."""
    from ..architecture import resolve

    found = find_attachment(model)
    kind = found.arch.model_type if found is not None else resolve(model).model_type
    check_base(data, model, kind, folder, strict)


def _targets(model: PreTrainedModel, tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, list[Tensor]]:
    """Return what the saved tensors of attached adapters and their own modules go into, by their keys in the file."""
    prefix = _prefix(model)
    targets: dict[str, list[Tensor]] = {**own_targets(model, names, tensors, prefix)}
    for name in names:
        for key, parameter in parameters_of(model, name, own_modules=False).items():
            targets[key.removeprefix(prefix)] = [parameter]
    for path, fusion in _fusions(model, names):
        for key, parameter in fusion.named_parameters():
            targets[f"{path.removeprefix(prefix)}.{key}"] = [parameter]
    return targets
