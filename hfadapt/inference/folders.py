"""The folders that an engine serves: which tasks each holds, and a model built of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import files as adapter_files
from ..adapters.folder_config import HFAdaptConfig
from ..adapters.foreign import find_format
from ..errors import CheckpointError
from ..errors.arguments import require_folder
from ..multitask.heads import OwnHead
from ..multitask.load import load
from ..multitask.model import MultiTaskModel
from ..multitask.save import KEY
from ..multitask.task import Task
from ..runtime.attachment import attachment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..multitask.live import LiveTasks

__all__ = ["Source", "add_folder", "digest_of", "model_of", "named_folders", "source_of", "tasks_in"]

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class Source:
    """Where a task came from.

    Args:
        folder: Its folder.
        digest: Of the folder's files when it was read.
        stamp: Sizes and times of these files.
    """

    folder: Path
    digest: str
    stamp: tuple[tuple[str | int, ...], ...]

    def holds(self) -> bool:
        """Say whether the folder holds what it held; files that nobody touched are not read again."""
        return _stamp(self.folder) == self.stamp or digest_of(self.folder) == self.digest


def source_of(folder: Folder) -> Source:
    """Return what a folder holds now."""
    path = require_folder(folder, where="Engine.add")
    stamp = _stamp(path)  # before the files are read: one that changes meanwhile has another one then
    return Source(path, digest_of(path), stamp)


def digest_of(folder: Folder) -> str:
    """Return what tells whether a folder still holds the same adapters: a digest of its configs and weights."""
    digest = hashlib.sha256()
    for file in _files(Path(folder)):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in found if file.is_file() and file.suffix in (".json", ".safetensors", ".bin")]


def _stamp(folder: Path) -> tuple[tuple[str | int, ...], ...]:
    stats = [(file.name, file.stat()) for file in _files(folder)]
    return tuple((name, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for name, one in stats)


def named_folders(folders: Folder | Sequence[Folder] | Mapping[str, Folder]) -> list[tuple[str | None, Path]]:
    """Return folders, each with what its only task is to be called; None for its own name.

    Raises:
        CheckpointError: there is none, or one is no folder.
    """
    where = "Engine.from_pretrained"
    if isinstance(folders, Mapping):
        given: list[tuple[str | None, object]] = [*folders.items()]
    elif isinstance(folders, (str, bytes, os.PathLike)) or not isinstance(folders, Iterable):
        given = [(None, folders)]
    else:
        given = [(None, folder) for folder in folders]
    found = [(name, require_folder(folder, where=where)) for name, folder in given]
    if not found:
        raise CheckpointError(
            "no folder to serve",
            where=where,
            got=repr(folders),
            allowed="one folder or more",
            try_="Engine.from_pretrained('adapter')",
        )
    for _, folder in found:
        if not folder.is_dir():
            raise CheckpointError(
                "no such folder",
                where=where,
                got=str(folder),
                allowed="a folder that is there",
                try_="hfadapt.save(model, folder), or the path from here",
            )
    return found


def model_of(folder: Path, base: PreTrainedModel | str | None, options: Mapping[str, Any]) -> MultiTaskModel:
    """Build the model of an engine from its first folder.

    Args:
        folder: Of any format.
        base: A base of the caller's, or for a folder of tasks its name; by default the one that the folder names.
        options: Arguments of ``hfadapt.load`` for another library's folder.

    Raises:
        CheckpointError: the folder is damaged, or its base is not to be found.
        TaskError: its adapter has no head whose answer could be read.
    """
    foreign = find_format(folder) is not None
    if not foreign and KEY in adapter_files.read_config(folder):
        return MultiTaskModel.from_pretrained(folder, base=base)
    if isinstance(base, str):
        got, try_ = f"base={base!r}", "base=AutoModelFor...from_pretrained(...), of the class that was adapted"
        raise CheckpointError(
            "a folder without tasks does not say of which class its base is",
            where=str(folder),
            got=got,
            allowed="a model",
            try_=try_,
        )
    stock = load(folder, base, **(options if foreign else {}))
    tasks = [Task(one, OwnHead()) for one in attachment(stock).routable]
    config = HFAdaptConfig(
        base_model_name_or_path=getattr(stock.config, "_name_or_path", "") or None,
        tasks=[task.to_dict() for task in tasks],
        base_class=type(stock).__name__,
        train_base=False,
    )
    return MultiTaskModel(config, stock, tasks).eval()


def tasks_in(folder: Path) -> list[str]:
    """Return the tasks that a folder knows by name; none for an adapter's, hfadapt's or another library's."""
    if find_format(folder) is not None:
        return []
    data = adapter_files.read_config(folder)
    return [one["name"] for one in data[KEY]["tasks"]] if KEY in data else []


def add_folder(
    model: LiveTasks, folder: Path, name: str | None, called: str | None, task: Task | None, options: Mapping[str, Any]
) -> list[Task]:
    """Add the tasks of a folder: all of them, or the one that is named.

    Args:
        model: That gets them.
        folder: Of any format.
        name: Which task of a folder with several.
        called: What to call it here.
        task: Its head, for a folder of an adapter.
        options: Arguments of ``hfadapt.load`` for another library's folder.

    Returns:
        The tasks, as the model has them. Where one of several cannot be added, none is.

    Raises:
        CheckpointError: the folder is damaged or of another base.
        TaskError: a name is taken, or the folder has no such task.
    """
    names: list[str | None] = [name]
    listed = tasks_in(folder)
    if name is None and called in listed:
        names = [called]
    elif name is None and called is None and listed:
        names = [*listed]
    added: list[Task] = []
    try:
        for one in names:
            added.append(model.add_task(folder, one, called=called, task=task, **options))
    except BaseException:
        for one in added:
            model.remove_task(one.name)
        raise
    return added
