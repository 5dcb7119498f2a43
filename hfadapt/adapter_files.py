"""The two files of an adapter folder: JSON and safetensors, read strictly; pickle is never opened."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .atomic import settle, target_folder
from .errors import CheckpointError, problem
from .multitask_config import is_marked

__all__ = [
    "CONFIG_FILE",
    "FIRST_VERSION",
    "FORMAT_VERSION",
    "OF_THE_WEIGHTS",
    "TRAINER_FILE",
    "WEIGHTS_FILE",
    "read_config",
    "read_tensors",
    "refuse_foreign",
    "settle_for_reading",
    "write_files",
]

FORMAT_VERSION = 2
# A folder says the lowest version that can express it, so that older releases read what they understand.
FIRST_VERSION = 1
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TRAINER_FILE = "model.safetensors"
# the twin of our weights: a save that writes none must not leave that of an older one
OF_THE_WEIGHTS = (TRAINER_FILE,)
_MODELS = ("model*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")

_TRY_RESUMING = (
    "if Trainer wrote it: attach the same adapters, and its resume_from_checkpoint takes it up; "
    "hfadapt.save(model, folder) then writes what can be loaded here"
)


def write_files(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write ``adapter_model.safetensors``, and ``adapter_config.json`` with its digest."""
    weights = folder / WEIGHTS_FILE
    save_file(tensors, str(weights), metadata={"format": "pt", "hfadapt": str(config["format_version"])})
    text = json.dumps({**config, "weights_sha256": _digest(weights)}, indent=2, default=str)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def refuse_foreign(folder: str | os.PathLike[str]) -> None:
    """Raise unless all that a save would replace, or make unloadable, in ``folder`` was written by hfadapt.

    Raises:
        CheckpointError: the folder holds a model or an adapter of another library's.
    """
    place = target_folder(folder)
    settle_for_reading(place)
    ours = is_marked(place)
    config = place / CONFIG_FILE
    if config.is_file():
        text = config.read_text("utf-8", errors="replace")
        # one that was cut off is ours too, if its beginning is
        if '"format": "hfadapt"' not in text and text.strip():
            raise CheckpointError(
                problem(
                    "the folder holds an adapter that hfadapt did not write",
                    where=str(folder),
                    got=CONFIG_FILE,
                    try_="another folder, or delete that one first",
                )
            )
        ours = True
    found = [p.name for pattern in _MODELS for p in place.glob(pattern)] if not is_marked(place) else []
    if (place / "config.json").exists() and not is_marked(place):
        found.append("config.json")
    if not ours and (place / WEIGHTS_FILE).exists():
        found.append(WEIGHTS_FILE)
    if found:
        raise CheckpointError(
            problem(
                "the folder holds a model that hfadapt did not write; neither would load from there again",
                where=str(folder),
                got=", ".join(sorted(found)),
                try_="another folder, for example one inside it",
            )
        )


def settle_for_reading(folder: str | os.PathLike[str]) -> None:
    """Finish a save into ``folder`` that was cut off when its files were there already.

    Raises:
        CheckpointError: it must be finished, and the folder cannot be written.
    """
    try:
        settle(Path(folder))
    except OSError as error:
        raise CheckpointError(
            problem(
                "a save that was cut off cannot be finished",
                where=str(folder),
                got=str(error),
                try_="load it once where the folder may be written",
            )
        ) from None


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check ``adapter_config.json``.

    Raises:
        CheckpointError: it is missing, not JSON, of another library, or of a newer format.
    """
    settle_for_reading(folder)
    path = Path(folder) / CONFIG_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else "no such folder"
        raise CheckpointError(
            problem(
                f"no {CONFIG_FILE}",
                where=str(folder),
                got=there,
                allowed="a folder written by hfadapt.save",
                try_=_TRY_RESUMING if "model.safetensors" in there else "",
            )
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(
            problem(
                f"{CONFIG_FILE} cannot be read",
                where=str(folder),
                got=str(error),
                try_="save again; the file was cut off or changed",
            )
        ) from None
    if not isinstance(data, dict) or data.get("format") != "hfadapt":
        kind = (
            data.get("peft_type") or ("AdapterHub" if isinstance(data, dict) and "config" in data else "unknown")
            if isinstance(data, dict)
            else "unknown"
        )
        raise CheckpointError(
            problem(
                "not an hfadapt folder",
                where=str(folder),
                got=f"a {kind} file",
                allowed="format 'hfadapt'",
                try_="hfadapt.load_peft(model, folder)" if kind == "LORA" else "",
            )
        )
    if not isinstance(data.get("format_version"), int) or data["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            problem(
                "written by a newer hfadapt",
                where=str(folder),
                got=f"format version {data.get('format_version')}",
                allowed=f"up to {FORMAT_VERSION}",
                try_="upgrade hfadapt",
            )
        )
    return data


def read_tensors(folder: str | os.PathLike[str], digest: str | None = None) -> dict[str, Tensor]:
    """Read ``adapter_model.safetensors``.

    Args:
        folder: Where it is.
        digest: ``weights_sha256`` of ``adapter_config.json``; None where that has none.

    Raises:
        CheckpointError: it is missing, damaged, or not the file that was saved.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(
            problem(f"no {WEIGHTS_FILE}", where=str(folder), try_="save again; pickle files are not read here")
        )
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            problem(
                f"{WEIGHTS_FILE} is damaged",
                where=str(folder),
                got=str(error),
                try_="save again; the file was cut off or changed",
            )
        ) from None
    found = _digest(path) if digest is not None else None
    if found != digest:
        raise CheckpointError(
            problem(
                f"{WEIGHTS_FILE} is not the file that was saved",
                where=str(folder),
                got=f"sha256 {found}",
                allowed=f"sha256 {digest}, as {CONFIG_FILE} says",
                try_=f"save again; or take 'weights_sha256' out of {CONFIG_FILE} if you changed the weights yourself",
            )
        )
    return tensors
