"""The two files of an adapter folder: JSON and safetensors, read strictly; pickle is never opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from ..errors.full_disk import writing
from .atomic import settle
from .saved_tensors import apart

__all__ = [
    "CONFIG_FILE",
    "FIRST_VERSION",
    "FORMAT_VERSION",
    "OLD_CONFIG_FILE",
    "TRAINER_FILE",
    "WEIGHTS_FILE",
    "check_digest",
    "config_path",
    "is_ours",
    "outdated",
    "read_config",
    "read_json",
    "read_safetensors",
    "read_tensors",
    "require_file",
    "settle_for_reading",
    "write_files",
]

FORMAT_VERSION = 2
# A folder says the lowest version that can express it, so that older releases read what they understand.
FIRST_VERSION = 1
CONFIG_FILE = "hfadapt_config.json"
# Of peft's and AdapterHub's folders too. transformers hands whatever holds it to peft, so that nothing of ours is
# written under it any more; releases up to 0.2 did.
OLD_CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TRAINER_FILE = "model.safetensors"
_CONFIG_DIGEST = "config_sha256"
_TRAINER_STATE = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "scaler.pt")

_TRY_RESUMING = (
    "if Trainer wrote it: attach the same adapters, and its resume_from_checkpoint takes it up; "
    "hfadapt.save(model, folder) then writes what can be loaded here"
)


def write_files(
    folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], weights_file: str = WEIGHTS_FILE
) -> None:
    """Write the weights, and ``hfadapt_config.json`` with their digest.

    Args:
        folder: Which is there.
        config: What the file says, but for the digests.
        tensors: By their keys in the file.
        weights_file: ``WEIGHTS_FILE``, or ``TRAINER_FILE`` where Trainer resumes from the very same tensors.
    """
    weights = folder / weights_file
    with writing(weights, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(apart(tensors), str(weights), metadata={"format": "pt", "hfadapt": str(config["format_version"])})
    described = json.loads(json.dumps({**config, "weights_sha256": _digest(weights)}, default=str))
    text = json.dumps({**described, _CONFIG_DIGEST: _digest_of_config(described)}, indent=2)
    with writing(folder / CONFIG_FILE, len(text)):
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _digest_of_config(data: Mapping[str, Any]) -> str:
    """Return the sha256 of a config's content (the digest of the weights is part of it), whatever its layout."""
    content = {key: value for key, value in data.items() if key != _CONFIG_DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_digest(data: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Raise unless ``hfadapt_config.json`` is what was saved; folders of older versions have no digest of it.

    Whoever takes the weights' digest out says that the folder was changed on purpose, so that nothing is compared.

    Raises:
        CheckpointError: a value was changed.
    """
    expected = data.get(_CONFIG_DIGEST) if data.get("weights_sha256") is not None else None
    found = _digest_of_config(data) if expected is not None else None
    if found != expected:
        raise CheckpointError(
            f"{config_path(folder).name} is not the file that was saved",
            where=str(folder),
            got=f"sha256 {found} of its content",
            allowed=f"sha256 {expected}",
            try_=f"save again; or take {_CONFIG_DIGEST!r} out of it if you changed it yourself",
        )


def outdated(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of files that belong to the weights in ``folder``, and go when those are replaced.

    These are our weights under either of their names, the description of an older release, and in a folder
    ``checkpoint-N`` Trainer's state: resuming must not find an optimizer of other weights beside the new ones.
    """
    state = _TRAINER_STATE if re.fullmatch(r"checkpoint-\d+", Path(folder).name) else ()
    # adapters of others may stand there under the same names, beside a model
    described = [path for name in (CONFIG_FILE, OLD_CONFIG_FILE) if (path := Path(folder) / name).is_file()]
    ours = [path.name for path in described if is_ours(path)]
    return (*ours, *([WEIGHTS_FILE] if ours and len(ours) == len(described) else []), TRAINER_FILE, *state)


def is_ours(config: Path) -> bool:
    """Say whether a description was written by hfadapt; one that was cut off is, if its beginning is."""
    text = config.read_text("utf-8", errors="replace")
    return '"format": "hfadapt"' in text or not text.strip()


def config_path(folder: str | os.PathLike[str]) -> Path:
    """Return where the description of a folder of adapters is, or would be.

    It stands under our name, or, where a release up to 0.2 wrote it, under the name that is peft's too.

    Raises:
        CheckpointError: both are there, and which of two saves the weights belong to is not known.
    """
    new, old = (Path(folder) / name for name in (CONFIG_FILE, OLD_CONFIG_FILE))
    if not old.exists():
        return new
    if new.exists():
        try:
            theirs = "of an older release" if old.is_file() and is_ours(old) else "of another library"
        except OSError as error:
            theirs = f"which cannot be read ({error})"
        raise CheckpointError(
            "the folder holds two adapters, and nothing says which one is meant",
            where=str(folder),
            got=f"{CONFIG_FILE}, and {OLD_CONFIG_FILE} {theirs}",
            allowed="one of the two",
            try_="move one of them, with its weights, to a folder of its own",
        )
    return old


def settle_for_reading(folder: str | os.PathLike[str]) -> None:
    """Finish a save into ``folder`` that was cut off when its files were there already.

    Raises:
        CheckpointError: it must be finished, and the folder cannot be written.
    """
    try:
        settle(Path(folder))
    except OSError as error:
        raise CheckpointError(
            "a save that was cut off cannot be finished",
            where=str(folder),
            got=str(error),
            allowed="a folder that this process may write to, once",
            try_="load it once where the folder may be written",
        ) from None


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check ``hfadapt_config.json``, or what stands for it in folders of releases up to 0.2.

    Raises:
        CheckpointError: it is missing, not JSON, of another library, or of a newer format.
    """
    settle_for_reading(folder)
    path = config_path(folder)
    try:
        data = read_json(path)
    except FileNotFoundError:
        there = (
            sorted(p.name for p in Path(folder).iterdir())
            if Path(folder).is_dir()
            else "no such folder, nor name on the hub"
        )
        raise CheckpointError(
            f"no {CONFIG_FILE}",
            where=str(folder),
            got=there,
            allowed="a folder written by hfadapt.save",
            try_=_TRY_RESUMING if "model.safetensors" in there else "look for the folder that the save named",
        ) from None
    if not isinstance(data, dict) or data.get("format") != "hfadapt":
        kind = (
            data.get("peft_type") or ("AdapterHub" if isinstance(data, dict) and "config" in data else "unknown")
            if isinstance(data, dict)
            else "unknown"
        )
        raise CheckpointError(
            "not an hfadapt folder",
            where=str(folder),
            got=f"a {kind} file",
            allowed="format 'hfadapt'",
            try_="hfadapt.load_peft(model, folder)" if kind == "LORA" else "",
        )
    if not isinstance(data.get("format_version"), int) or data["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            "written by a newer hfadapt",
            where=str(folder),
            got=f"format version {data.get('format_version')}",
            allowed=f"up to {FORMAT_VERSION}",
            try_="upgrade hfadapt",
        )
    wrong = _wrong_fields(data)
    if wrong:
        raise CheckpointError(
            f"{path.name} holds what no save writes",
            where=str(folder),
            got="; ".join(wrong[:5]),
            allowed="the fields that hfadapt.save writes, each of its kind",
            try_="save again; the file was changed",
        )
    return data


def read_json(path: Path) -> Any:
    """Read a JSON file of a folder.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is no file, no JSON, or too deep or too long a number for one.
    """
    try:
        require_file(path)
        return json.loads(path.read_text(encoding="utf-8"), parse_int=_whole)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read",
            where=str(path.parent),
            got=str(error)[:300],
            allowed="a whole file of JSON, in UTF-8",
            try_="save again; the file was cut off or changed",
        ) from None


def _whole(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def require_file(path: Path) -> None:
    """Raise unless an ordinary file is there: a named pipe would be waited for.

    Raises:
        FileNotFoundError: there is nothing.
        CheckpointError: it is a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(
            f"{path.name} is no ordinary file",
            where=str(path.parent),
            got="a folder" if path.is_dir() else "a pipe, a socket or a device",
            allowed="a file",
            try_=f"move it away, and put the saved {path.name} in its place",
        )


def _wrong_fields(data: Mapping[str, Any]) -> list[str]:
    """Name the fields of a description that are missing, or whose values have another type than saves write."""

    def words(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)

    def maps(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(one, dict) for one in value)

    def named(value: Any, of: Callable[[Any], bool]) -> bool:
        return isinstance(value, dict) and all(of(one) for one in value.values())

    def text(value: Any) -> bool:
        return isinstance(value, str)

    def maybe(value: Any) -> bool:
        return value is None or isinstance(value, str)

    def fusion(value: Any) -> bool:
        return words(value.get("adapters")) and text(value.get("method")) and named(value.get("kept"), words)

    def tasks(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and maps(value.get("tasks"))
            and isinstance(value.get("train_base"), bool)
            and isinstance(value.get("base_config", {}), dict)
            and named(value.get("routes", {}), text)
        )

    needed: dict[str, Callable[[Any], bool]] = {
        "adapters": lambda value: named(value, maps),
        "base_config_hash": text,
        "base_model_name_or_path": maybe,
        "base_model_type": text,
        "model_class": text,
    }
    others: dict[str, Callable[[Any], bool]] = {
        _CONFIG_DIGEST: maybe,
        "active": maybe,
        "active_composition": lambda value: isinstance(value, dict),
        "base_dtype": text,
        "compositions": lambda value: isinstance(value, dict),
        "drop": lambda value: named(value, lambda layers: type(layers) is int),
        "fusions": lambda value: maps(value) and all(map(fusion, value)),
        "head": words,
        "multi_task": tasks,
        "routers": lambda value: isinstance(value, list) and all(map(words, value)),
        "weights_sha256": maybe,
    }
    missing = [f"no {key}" for key in needed if key not in data]
    given = [(key, fits) for key, fits in {**needed, **others}.items() if key in data]
    return missing + [f"{key}: {str(data[key])[:80]!r}" for key, fits in given if not fits(data[key])]


def read_tensors(folder: str | os.PathLike[str], digest: str | None = None) -> dict[str, Tensor]:
    """Read ``adapter_model.safetensors``, or ``model.safetensors`` where the weights stand there alone.

    Args:
        folder: Where it is.
        digest: ``weights_sha256`` of the folder's description; None where that has none.

    Raises:
        CheckpointError: it is missing, damaged, or not the file that was saved.
    """
    names = (WEIGHTS_FILE, TRAINER_FILE)
    there = [path for name in names if (path := Path(folder) / name).exists()]
    if not there:
        raise CheckpointError(
            f"no {' nor '.join(names)}",
            where=str(folder),
            got=", ".join(sorted(p.name for p in Path(folder).iterdir())[:8])
            if Path(folder).is_dir()
            else "no such folder",
            allowed="one of the two",
            try_="save again; no pickle is read",
        )
    path = there[0]
    tensors = read_safetensors(path)
    found = _digest(path) if digest is not None else None
    if found != digest:
        config = config_path(folder).name
        raise CheckpointError(
            f"{path.name} is not the file that was saved",
            where=str(folder),
            got=f"sha256 {found}",
            allowed=f"sha256 {digest}, as {config} says",
            try_=f"save again; or take 'weights_sha256' out of {config} if you changed the weights yourself",
        )
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        require_file(path)
    except OSError:
        raise CheckpointError(
            f"no {path.name}",
            where=str(path.parent),
            got="no file of that name",
            allowed="tensors in a safetensors file",
            try_="save again; pickle files are not read here",
        ) from None
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} is damaged",
            where=str(path.parent),
            got=str(error),
            allowed="a whole safetensors file",
            try_="save again; the file was cut off or changed",
        ) from None
