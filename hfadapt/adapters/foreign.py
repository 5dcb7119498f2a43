"""Folders of other libraries: told by the registered formats, tried on an empty copy, then put on the model whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import CheckpointError, did_you_mean
from ..method.delta import NAME_RULE, is_adapter_name, nearest_name
from ..routing.composition import Fuse, adapter_names
from ..runtime.attachment import attachment, find_attachment, parameters_of
from .activate import activate
from .atomic import target_folder
from .attach import attach
from .base_model import load_base
from .files import config_path, is_ours, require_file
from .folder_checks import joining_method, refuse_taken
from .folder_format import Described, FolderContent, FolderFormat, ReadOptions
from .own_copies import own_modules, own_tensors, resize_outputs
from .restore import all_or_nothing, as_described, meta_copy, rehearsal
from .save import fusions_of
from .saved_tensors import check_tensors, fill, parameters_of_others, require_agreeing, require_finite
from .verify import prove as prove_again
from .verify import verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..architecture import ArchitectureMap

__all__ = ["arch_of", "export", "find_format", "fusion_tensors", "load_foreign", "paths_in", "put_on"]


def arch_of(model: PreTrainedModel) -> ArchitectureMap:
    """Return the map of a model, adapted or not.

    Raises:
        ArchitectureError: its structure cannot be mapped.
    """
    from ..architecture import resolve

    state = find_attachment(model)
    return resolve(model) if state is None else state.arch


def paths_in(
    model: PreTrainedModel, paths: Iterable[str], folder: str | os.PathLike[str], allowed: object = None
) -> dict[str, str]:
    """Return where modules are in a model that were saved from a class with a head, or from one without.

    Args:
        model: The base, whose class may have a head or none.
        paths: In the model that was saved.
        folder: For errors.
        allowed: For errors: what there is.

    Raises:
        CheckpointError: the model lacks one of them.
    """
    saved, modules, prefix = list(paths), {path for path, _ in model.named_modules()}, f"{model.base_model_prefix}."
    inside = getattr(model, "base_model", model) is not model
    found = (
        {path: path for path in saved},
        {path: f"{prefix}{path}" for path in saved if inside},
        {path: path.removeprefix(prefix) for path in saved},
    )
    for one in found:
        if len(one) == len(saved) and modules.issuperset(one.values()):
            return one
    missing = next(path for path in saved if path not in modules)
    raise CheckpointError(
        "the adapter is of another base: it updates modules that this model has not",
        where=str(folder),
        got=f"{missing} (of {len(saved)}) on {type(model).__name__}",
        allowed=allowed,
        try_=did_you_mean(missing, sorted(modules)),
    )


def find_format(folder: str | os.PathLike[str], name: str | None = None) -> FolderFormat | None:
    """Return the format of a folder, or None where it is no other library's.

    Args:
        folder: Any folder.
        name: The format, where the caller knows it.

    Raises:
        RegistryError: there is no format of that name.
        CheckpointError: a folder looks like one of several.
    """
    from .. import plugins

    if name is not None:
        return plugins.formats()[name]
    if _is_own(folder):
        return None  # nobody else is asked: a plugin's fault must not keep our own folders from being read
    found = []
    for one in plugins.formats().values():
        with as_described(folder):
            if one.recognises(Path(folder)):
                found.append(one)
    if len(found) > 1:
        names = [one.name for one in found]
        raise CheckpointError(
            "the folder looks like one of several libraries",
            where=str(folder),
            got=" and ".join(names),
            allowed="the files of one library",
            try_=f"hfadapt.load(folder, model, format={names[0]!r})",
        )
    return found[0] if found else None


def _is_own(folder: str | os.PathLike[str]) -> bool:
    path = config_path(folder)
    try:
        require_file(path)
        return is_ours(path)
    except (OSError, CheckpointError):
        return False


def load_foreign(
    folder: str | os.PathLike[str], model: PreTrainedModel | None, found: FolderFormat, options: ReadOptions
) -> PreTrainedModel:
    """Put what another library saved on a base.

    Args:
        folder: Of the format ``found``.
        model: The base; by default the one that the folder names.
        found: The format.
        options: What the caller said.

    Returns:
        ``model`` (or the new one), adapted; adapters that were there stay.

    Raises:
        CheckpointError: the files are damaged, say what hfadapt cannot do, or belong to another base.
    """
    path = Path(folder)
    contents: list[FolderContent] = []

    # The folder's names mean something beside the base alone, so that it is read as soon as there is one.
    def brought(base: PreTrainedModel) -> list[str]:
        contents.append(found.read(base, path, options))
        return [name for one in contents[0].adapters for name in one.whole]

    with as_described(folder):
        if model is None:
            model = load_base(folder, *found.base(path, options), automatic=True, brought=brought)
        else:
            brought(model)
    put_on(model, contents[0], folder)
    return model.eval()


def put_on(model: PreTrainedModel, content: FolderContent, folder: str | os.PathLike[str]) -> None:
    """Attach what a folder describes, with its weights, all of it or nothing.

    Args:
        model: The base, which may have adapters.
        content: What a format read.
        folder: For errors.

    Raises:
        CheckpointError: names are taken or no names; tensors are missing, left over, of another shape or not finite;
            or what is described does not fit the model.
    """
    _check_names(model, content, folder)
    for one in content.adapters:
        require_finite(one.whole, folder)
    with rehearsal(folder):
        twin = meta_copy(model, joins=bool(content.fusions))
        _attach(twin, content, folder, prove=False)
    with as_described(folder):  # beside the rehearsal: what is computed from the files is no shape
        given = _weights(twin, content)
        check_tensors(_targets(twin, content), given, folder, try_="a file of this base, or another base")
    with as_described(folder), all_or_nothing(model):
        had = find_attachment(model)
        chosen = had is not None and had.choice.made
        _attach(model, content, folder, prove=True)
        targets = _targets(model, content)
        require_agreeing(targets, given, parameters_of_others(model, [one.name for one in content.adapters]), folder)
        fill(targets, given)
        if content.adapters:
            verify(model, [one.name for one in content.adapters])
        if content.choice is not None and not chosen:
            choice = content.choice
            activate(model, list(choice) if isinstance(choice, tuple) else choice)


def _check_names(model: PreTrainedModel, content: FolderContent, folder: str | os.PathLike[str]) -> None:
    names = [one.name for one in content.adapters]
    state = find_attachment(model)
    had = () if state is None else state.routable
    bad = [name for name in names if not is_adapter_name(name)]
    if bad:
        try_ = f"hfadapt.load(folder, model, name={nearest_name(bad[0])!r})"
        raise CheckpointError(
            "the adapter's name cannot be a name here",
            where=str(folder),
            got=repr(bad[0]),
            allowed=NAME_RULE,
            try_=try_,
        )
    refuse_taken(names, had, folder)
    joined = [name for one in content.fusions for name in adapter_names(one.node)]
    missing = [name for name in dict.fromkeys(joined) if name not in (*names, *had)]
    if missing:
        raise CheckpointError(
            "the folder joins adapters that the model has not",
            where=str(folder),
            got=", ".join(missing),
            allowed=", ".join(had) or "none is attached",
            try_="load the adapters first, under the names that the folder gives them",
        )


def _attach(model: PreTrainedModel, content: FolderContent, folder: str | os.PathLike[str], *, prove: bool) -> None:
    for one in content.adapters:
        modules = dict.fromkeys(key.rpartition(".")[0] for key in one.whole)
        attach(model, one.configs, one.name, modules_to_save=modules, verify=False)
        for path in own_modules(model, one.name):
            if f"{path}.weight" in one.whole:
                resize_outputs(model, one.name, path, one.whole[f"{path}.weight"].shape)
    for one in content.fusions:
        method = joining_method(one.method, folder)
        method.restore(model, one.node, one.fields, {})
        attachment(model).changed()
    if prove and content.adapters:
        attachment(model).prove = prove_again


def _weights(twin: PreTrainedModel, content: FolderContent) -> dict[str, Tensor]:
    """Return the tensors of a folder by the names of what they go into."""
    given: dict[str, Tensor] = {}
    for one in content.adapters:
        given |= one.weights(twin, one.name)
        given |= {_copy_key(one.name, *key.rpartition(".")[::2]): tensor for key, tensor in one.whole.items()}
    for fusion in content.fusions:
        given |= fusion.weights(twin, fusion.node.key)
    return given


def _targets(model: PreTrainedModel, content: FolderContent) -> dict[str, Sequence[Tensor]]:
    targets: dict[str, Sequence[Tensor]] = {}
    for one in content.adapters:
        targets |= {key: [p] for key, p in parameters_of(model, one.name, own_modules=False).items()}
        targets |= {key: [tensor] for key, tensor in _whole_targets(model, one)}
    for fusion in content.fusions:
        targets |= {key: [p] for key, p in fusion_tensors(model, fusion.node).items()}
    return targets


def _whole_targets(model: PreTrainedModel, one: Described) -> Iterator[tuple[str, Tensor]]:
    """Yield what of the adapter's own modules the file must hold: all of a module, or nothing (a head it lacks)."""
    touched = {key.rpartition(".")[0] for key in one.whole}
    for path, key, tensor in own_tensors(model, one.name):
        if path in touched:
            yield _copy_key(one.name, path, key), tensor


def _copy_key(name: str, path: str, key: str) -> str:
    return f"{path}.hfadapt.copies.{name}.{key}"


def fusion_tensors(model: PreTrainedModel, node: Fuse) -> Mapping[str, Tensor]:
    """Return the parameters of a fusion's layers, by their names in the model."""
    names = [str(name) for name in adapter_names(node)]
    return {
        f"{path}.{key}": parameter
        for path, layer in fusions_of(model, names)
        if getattr(layer, "names", ()) == tuple(names)
        for key, parameter in layer.named_parameters()
    }


def export(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    name: str | None = None,
    *,
    format: str,
) -> None:
    """Write an adapter as another library does.

    Args:
        model: With the adapter attached.
        folder: Made if it is missing.
        name: Of the adapter; may be left out where there is one.
        format: ``"peft"``, ``"adapterhub"``, or what a plugin registered.

    Raises:
        RegistryError: there is no format of that name.
        AttachError: there is no such adapter, or the format cannot say what it is.
        CheckpointError: the folder holds what hfadapt or another library saved, cannot be written, or the base trains.
    """
    from .. import plugins

    found = plugins.formats()[format]
    target_folder(folder)
    found.write(model, Path(folder), name)
