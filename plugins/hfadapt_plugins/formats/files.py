"""What readers of all formats ask of a folder: its config and its tensors, in files of any of their names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.adapters.formats import ReadOptions, read_json, read_pickle, read_safetensors, require_file
from hfadapt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["config_in", "is_file", "tensors_in"]


def is_file(path: Path) -> bool:
    """Say whether an ordinary file is there."""
    try:
        require_file(path)
    except (OSError, ValueError, CheckpointError):
        return False
    return True


def config_in(folder: Path, file: str) -> dict[str, Any]:
    """Return the fields of a config.

    Raises:
        CheckpointError: it cannot be read, or holds none.
    """
    try:
        data = read_json(folder / file)
    except OSError as error:
        got = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{file} cannot be read",
            where=str(folder),
            got=got,
            allowed="a file of JSON that this process may read",
            try_="the folder that holds the file, or the file downloaded again",
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{file} holds no fields",
            where=str(folder),
            got=type(data).__name__,
            allowed="one JSON object: {...}",
            try_="save the adapter again with the library that wrote it",
        )
    return data


def tensors_in(folder: Path, safe: str, pickled: str, options: ReadOptions) -> dict[str, Tensor]:
    """Return the tensors of a folder.

    Args:
        folder: Where they are.
        safe: Name of the safetensors file.
        pickled: Name of the pickle file, which is read only where the caller said so.
        options: What the caller said.

    Raises:
        CheckpointError: the file is missing or damaged; or only a pickle is there, and nobody asked for it.
    """
    if options.pickle:
        return read_pickle(folder / pickled)
    if not (folder / safe).exists() and (folder / pickled).exists():
        raise CheckpointError(
            f"{pickled} is a pickle, and is opened only when it is asked for",
            where=str(folder),
            got=f"no {safe}",
            allowed=safe,
            try_="hfadapt.load(folder, model, weights='bin'), which reads tensors alone (weights_only=True)",
        )
    return read_safetensors(folder / safe)
