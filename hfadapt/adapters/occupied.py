"""What a folder must not hold before adapters are written there: neither would load again."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError
from .atomic import target_folder
from .files import CONFIG_FILE, OLD_CONFIG_FILE, WEIGHTS_FILE, is_ours, settle_for_reading
from .folder_config import is_marked

__all__ = ["refuse_foreign", "refuse_own"]

_MODELS = ("model*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def refuse_foreign(folder: str | os.PathLike[str]) -> None:
    """Raise unless all that a save would replace, or make unloadable, in ``folder`` was written by hfadapt.

    Raises:
        CheckpointError: the folder holds a model or an adapter of another library's.
    """
    place = target_folder(folder)
    settle_for_reading(place)
    described = _descriptions(place)
    ours = is_marked(place) or any(described.values())
    theirs = [name for name, own in described.items() if not own]
    if theirs:
        raise CheckpointError(
            "the folder holds an adapter that hfadapt did not write",
            where=str(folder),
            got=", ".join(theirs),
            allowed="an empty folder, or one whose adapters hfadapt wrote",
            try_="another folder, or delete that one first",
        )
    found = _of_a_model(place)
    if not ours and (place / WEIGHTS_FILE).exists():
        found.append(WEIGHTS_FILE)
    if found:
        raise CheckpointError(
            "the folder holds a model that hfadapt did not write; neither would load from there again",
            where=str(folder),
            got=", ".join(sorted(found)),
            allowed="a folder without a model of others",
            try_="another folder, for example one inside it",
        )


def refuse_own(folder: str | os.PathLike[str]) -> None:
    """Raise where an adapter in another library's format would destroy a save of hfadapt's, or hide a model.

    Raises:
        CheckpointError: the folder holds adapters of hfadapt's, or a model, which transformers would not load again.
    """
    place = target_folder(folder)
    settle_for_reading(place)
    if is_marked(place) or any(_descriptions(place).values()):
        raise CheckpointError(
            "the folder holds an adapter of hfadapt's own",
            where=str(folder),
            got=", ".join(name for name, own in _descriptions(place).items() if own)
            or "the mark of a run that saves here",
            allowed="a folder without a save of hfadapt's",
            try_="another folder for files in another library's format",
        )
    found = _of_a_model(place)
    if found:
        raise CheckpointError(
            "the folder holds a model, and transformers takes an adapter beside it for a part of it",
            where=str(folder),
            got=", ".join(sorted(found)),
            allowed="a folder without a model",
            try_="another folder, for example one inside it",
        )


def _descriptions(place: Path) -> dict[str, bool]:
    """Names of the descriptions of adapters that are there, and whether hfadapt wrote each."""
    files = [place / name for name in (CONFIG_FILE, OLD_CONFIG_FILE)]
    return {file.name: is_ours(file) for file in files if file.is_file()}


def _of_a_model(place: Path) -> list[str]:
    """Names of files of a model that hfadapt did not write."""
    if is_marked(place):
        return []
    found = [path.name for pattern in _MODELS for path in place.glob(pattern)]
    return [*found, "config.json"] if (place / "config.json").exists() else found
