"""A format of folders that another library writes: how it is told, read and written, and what its folders describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..errors import CheckpointError
from ..method import MethodConfig
from ..routing.composition import Fuse, Node

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Described", "DescribedFusion", "FolderContent", "FolderFormat", "ReadOptions", "no_format"]


@dataclass(frozen=True)
class ReadOptions:
    """What a caller of ``hfadapt.load`` said.

    Args:
        name: What to call the adapter here; None for the folder's own name.
        pickle: Read the ``.bin`` files in place of the safetensors.
    """

    name: str | None = None
    pickle: bool = False


@dataclass(frozen=True)
class Described:
    """One adapter of a folder.

    Args:
        name: What it is to be called.
        configs: What is attached for it.
        weights: Called with a model to which that is attached (which may be on the meta device) and the adapter's name;
            returns the tensors of all its parameters by the model's names for them, as ``hfadapt.parameters_of`` gives
            them. Every tensor of the file has to be used or an error.
        whole: Tensors of modules of which the adapter gets copies of its own, heads above all, by the names that the
            base's own tensors have.
    """

    name: str
    configs: tuple[MethodConfig, ...]
    weights: Callable[[PreTrainedModel, str], Mapping[str, Tensor]]
    whole: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class DescribedFusion:
    """AdapterFusion layers of a folder.

    Args:
        node: The adapters that it joins, attached already or in the same folder.
        method: Name of the method that restores it.
        fields: Of that method's config.
        weights: As of `Described`, with the node's key as the name; keys are those of ``fusion_tensors``.
    """

    node: Fuse
    method: str
    fields: Mapping[str, Any]
    weights: Callable[[PreTrainedModel, str], Mapping[str, Tensor]]


@dataclass(frozen=True)
class FolderContent:
    """What a folder holds.

    Args:
        adapters: In the order of their ids.
        fusions: Over them, or over adapters that the model has already.
        choice: What calls without ``task_ids`` use unless the user has chosen; None leaves that to ``attach``.
    """

    adapters: tuple[Described, ...] = ()
    fusions: tuple[DescribedFusion, ...] = ()
    choice: Node | tuple[str | None, ...] | None = None


class FolderFormat:
    """Base of a format. A subclass sets the class attributes and writes ``recognises`` and ``read``."""

    name: ClassVar[str]
    """Under which it is registered; what ``hfadapt.load(folder, format=...)`` takes."""
    summary: ClassVar[str] = ""
    """Whose folders these are, in a few words."""
    exports: ClassVar[Mapping[str, Any]] = {}
    """Functions that ``hfadapt`` offers by name."""

    def recognises(self, folder: Path) -> bool:
        """Say by its files whether a folder is of this format, damaged or not; open no weights.

        Raises:
            CheckpointError: a file that would tell cannot be read.
        """
        raise NotImplementedError  # `no_format` refuses whoever leaves it so

    def base(self, folder: Path, options: ReadOptions) -> tuple[str, str, Mapping[str, Any]]:
        """Return the base that a folder names: its class in transformers, its name or path, and further arguments.

        Raises:
            CheckpointError: the folder names none.
        """
        raise CheckpointError(
            "the base is not known",
            where=str(folder),
            got="no model given",
            allowed=f"a base: this reader of {self.name} takes none from the folder",
            try_="hfadapt.load(folder, model=base)",
        )

    def read(self, model: PreTrainedModel, folder: Path, options: ReadOptions) -> FolderContent:
        """Read a folder for a model, and change nothing.

        Args:
            model: The base, which may have adapters already.
            folder: Of this format.
            options: What the caller said.

        Raises:
            CheckpointError: the files are damaged, say what hfadapt cannot do (each such field is named), or belong to
                another model.
        """
        raise NotImplementedError  # `no_format` refuses whoever leaves it so

    def write(self, model: PreTrainedModel, folder: Path, name: str | None) -> None:
        """Write an adapter of a model into a folder of this format.

        Raises:
            AttachError: there is no such adapter, or the format cannot say what it is.
            CheckpointError: the folder cannot be written.
        """
        from .. import plugins

        writing = [one.name for one in plugins.formats().values() if type(one).write is not FolderFormat.write]
        raise CheckpointError(
            f"hfadapt reads folders of {self.name}, and does not write them",
            where=str(folder),
            got=f"format={self.name!r}",
            allowed=", ".join(sorted(writing)) or "no format of another library is written here",
            try_="hfadapt.save(model, folder), in the format of hfadapt's own",
        )


def no_format(name: str, thing: object) -> str:
    """Say what ought to be registered in the place of ``thing``; "" for a format as it should be."""
    if not isinstance(thing, FolderFormat):
        return "an instance of hfadapt.adapters.formats.FolderFormat"
    if type(thing).recognises is FolderFormat.recognises or type(thing).read is FolderFormat.read:
        return "a format that recognises and reads folders"
    if getattr(thing, "name", None) != name or not isinstance(thing.summary, str):
        return f"one with name = {name!r}, whose summary is a text"
    return ""
