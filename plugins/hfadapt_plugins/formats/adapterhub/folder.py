"""One of AdapterHub's folders for one model: its tensors by the names of the base, and which of them were used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.errors import CheckpointError

from ...methods.prefix import has_distances

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap

__all__ = ["Tensors", "base_path", "refused"]

# What releases before the names of today wrote (the first on 2020's models with two kinds of adapters).
_OLDER_NAMES = {
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}


def refused(what: str, folder: Path, got: object, try_: str = "", allowed: object = None) -> CheckpointError:
    """Return the error of a folder that says what hfadapt cannot do."""
    return CheckpointError(what, where=str(folder), got=got, allowed=allowed, try_=try_)


def base_path(model: PreTrainedModel) -> str:
    """Return what stands before the base's paths in a model with a head, and so in the names that it saves."""
    return "" if getattr(model, "base_model", model) is model else f"{model.base_model_prefix}."


@dataclass
class Tensors:
    """The tensors of a file, by their names in the base without a head.

    Args:
        folder: For errors.
        arch: Of the model that they are for.
        prefix: What stands before the base's paths in that model.
        name: The adapter's in the file.
        tensors: By name.
        distances: The model adds a learned bias for the distance of two tokens.
    """

    folder: Path
    arch: ArchitectureMap
    prefix: str
    name: str
    tensors: dict[str, Tensor]
    distances: bool = False
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(
        cls, tensors: dict[str, Tensor], model: PreTrainedModel, arch: ArchitectureMap, name: str, folder: Path
    ) -> Tensors:
        """Take away what stands before the base's names, and give older releases' names those of today."""
        renamed: dict[str, Tensor] = {}
        start = f"{model.base_model_prefix}."
        # a base may have a part of that name itself, which then stands before some of its tensors only
        strip = bool(tensors) and all(key.startswith(start) for key in tensors)
        for key, tensor in tensors.items():
            steps = (key.removeprefix(start) if strip else key).split(".")
            new = ".".join(_OLDER_NAMES.get(step, step) for step in steps)
            if new in renamed:
                raise refused("two tensors of the file have one name", folder, new)
            renamed[new] = tensor
        first = model.get_submodule(arch.stacks[0].layer(0).attention.module)
        return cls(folder, arch, base_path(model), name, renamed, has_distances(first))

    def relative(self, path: str) -> str:
        """Return a path of the model as one of the base."""
        return path.removeprefix(self.prefix)

    def take(self, key: str) -> Tensor:
        """Return a tensor, and note that it was used.

        Raises:
            CheckpointError: there is none.
        """
        if key not in self.tensors:
            raise refused("the file lacks a tensor that the config announces", self.folder, key)
        self.used.add(key)
        return self.tensors[key]

    def owners(self, kind: str) -> dict[str, set[str]]:
        """Return which modules hold tensors of this adapter, and the ends of their keys.

        Args:
            kind: What stands between: ``"adapters"``, ``"loras"``.
        """
        found: dict[str, set[str]] = {}
        middle = f".{kind}.{self.name}."
        for key in self.tensors:
            owner, there, end = key.partition(middle)
            if there:
                found.setdefault(owner, set()).add(end)
        return found

    def refuse_rest(self, twins: dict[str, str] | None = None) -> None:
        """Raise unless every tensor was used, or is what one that was used is under another name.

        Args:
            twins: The ends of keys that hold the same as another key, which is the value.

        Raises:
            CheckpointError: one is left over, or differs from what it ought to repeat.
        """
        rest = []
        for key in self.tensors:
            if key in self.used:
                continue
            same = next((to for end, to in (twins or {}).items() if key.endswith(end)), None)
            if same is None or not torch.equal(self.tensors[key], self.tensors[same]):
                rest.append(key)
        if rest:
            got = f"{len(rest)}, such as {', '.join(rest[:3])}"
            raise refused("the file holds tensors that its config does not announce", self.folder, got)


def number(value: Any) -> bool:
    """Say whether a value is a number and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
