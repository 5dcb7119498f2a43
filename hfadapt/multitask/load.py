"""``load``: finds out what a folder holds, and reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..adapters.files import read_config
from ..adapters.folder_format import ReadOptions
from ..adapters.foreign import find_format, load_foreign
from ..adapters.from_hub import local_folder
from ..adapters.load import load_adapters
from ..adapters.save_hooks import SIDE_FOLDER, base_beside, is_whole
from ..errors import CheckpointError, ConfigError
from ..errors.arguments import require_folder
from ..errors.inside import require_itself
from .model import MultiTaskModel
from .save import KEY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load"]

WEIGHTS = ("safetensors", "bin")


def load(
    folder: str | os.PathLike[str],
    model: PreTrainedModel | None = None,
    *,
    strict: bool = True,
    format: str | None = None,
    name: str | None = None,
    weights: str = "safetensors",
    revision: str | None = None,
    token: str | bool | None = None,
) -> PreTrainedModel:
    """Put saved adapters on a base, or load a ``MultiTaskModel``.

    Args:
        folder: Written by ``save``; by ``save_pretrained`` of an adapted model, as Trainer and other libraries call it,
            which holds the base too; or by another library: peft, AdapterHub, or what a plugin reads. Or the name on
            the hub to which such a folder was pushed.
        model: The base; by default the one named in the folder, with ``from_pretrained``. On a ``MultiTaskModel``
            another library's folder becomes a task: see its ``add_task``.
        strict: Every key must be there, with its shape, and no other; and the base's config must be the same in all
            that decides shapes and computation. Otherwise fields may differ that no stock code reads. Folders of other
            libraries are always read strictly.
        format: Whose folder it is, ``"peft"`` or ``"adapterhub"``; by default its files tell.
        name: What to call the adapter of another library's folder here; by default as it is called there.
        weights: ``"bin"`` reads pickle files of other libraries, whose tensors are opened with ``weights_only=True``,
            in place of ``"safetensors"``.
        revision: Of a folder on the hub: a branch, a tag or a commit.
        token: With which the hub is asked for it; by default that of ``hf auth login``.

    Returns:
        ``model`` (or the new one), adapted; adapters that were there stay.

    Raises:
        CheckpointError: the files are damaged, belong to another base, differ from what the configs make, or say what
            hfadapt cannot do.
        ConfigError: an argument holds a value that is not allowed, or is for folders of other libraries.
        RegistryError: there is no such format.
    """
    if weights not in WEIGHTS:
        raise ConfigError(
            "bad weights",
            where="hfadapt.load",
            got=repr(weights),
            allowed="'safetensors' or 'bin'",
            try_="leave it out, or weights='bin' for pickle files",
        )
    _check_arguments(folder, model)
    if revision is not None and os.path.lexists(folder):
        raise ConfigError(
            "a folder on disk has no revisions",
            where="hfadapt.load",
            got=f"revision={revision!r} of {os.fspath(folder)}",
            allowed="names on the hub",
            try_="leave it out",
        )
    folder = local_folder(folder, {"revision": revision, "token": token})
    if format is None and is_whole(folder):
        return load_adapters(Path(folder) / SIDE_FOLDER, base_beside(folder, model), strict=strict)
    found = find_format(folder, format)
    if found is not None:
        if isinstance(model, MultiTaskModel):
            model.add_task(folder, name, format=format, weights=weights)
            return model
        return load_foreign(folder, model, found, ReadOptions(name, weights == "bin"))
    if name is not None or weights != "safetensors":
        given = f"name={name!r}" if name is not None else f"weights={weights!r}"
        raise ConfigError(
            "an argument for folders of other libraries",
            where="hfadapt.load",
            got=given,
            allowed="hfadapt's own folder",
            try_="leave it out",
        )
    options: dict[str, Any] = {} if token is None else {"token": token}  # for the base, which may be private too
    if (model is None or isinstance(model, MultiTaskModel)) and KEY in read_config(folder):
        return MultiTaskModel.from_pretrained(str(folder), **options)
    return load_adapters(folder, model, strict=strict, options=options)


def _check_arguments(folder: object, model: object) -> None:
    require_folder(folder, where="hfadapt.load")
    require_itself(model, where="hfadapt.load", error=CheckpointError)
    if model is not None and not isinstance(model, nn.Module):
        raise CheckpointError(
            "what adapters are to be put on is no model",
            where="hfadapt.load",
            got=repr(model)[:80],
            allowed="a model, or None for the one that the folder names",
            try_="AutoModel.from_pretrained(name), and that model",
        )
