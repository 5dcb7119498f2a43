"""Whether the base that a folder of adapters names is the one that is served, where both are at hand.

A config tells two bases of one size not apart, and adapters on the wrong one answer without an error. The weights do:
some numbers of tensors of one name are compared, which two trainings do not have in common.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ..adapters import files as adapter_files
from ..adapters.folder_format import ReadOptions
from ..adapters.foreign import find_format
from ..adapters.model_source import model_path
from ..errors import CheckpointError, HFAdaptError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["require_same_base"]

_TENSORS, _NUMBERS = 16, 64
# Of numbers of another dtype: a base may lie there in half precision and here in single.
_ROUNDING = 1 / 128


def require_same_base(folder: Path, base: PreTrainedModel) -> None:
    """Raise where a folder names a base with other weights than the one that is served.

    Args:
        folder: Of adapters, of any format.
        base: That is served.

    Raises:
        CheckpointError: both bases lie on this machine, in folders of safetensors, and their weights differ.
    """
    named = _base_named_in(folder)
    served = getattr(base.config, "_name_or_path", "") or ""
    theirs, ours = _folder_of(named), _folder_of(served)
    if theirs is None or ours is None or theirs == ours:
        return
    different = _differing(theirs, ours)
    if different is not None:
        raise CheckpointError(
            f"the adapters belong to another base; {different} differs",
            where=str(folder),
            got=f"adapters for {named}",
            allowed=f"adapters for {served}",
            try_="an engine of its own, with the base that is named; or base=..., where both are the same to you",
        )


def _base_named_in(folder: Path) -> str:
    found = find_format(folder)
    if found is not None:
        with contextlib.suppress(HFAdaptError):  # it names none
            return found.base(folder, ReadOptions())[1]
        return ""
    name = adapter_files.read_config(folder).get("base_model_name_or_path")
    return name if isinstance(name, str) else ""


def _folder_of(name: str) -> Path | None:
    with contextlib.suppress(HFAdaptError, OSError, ValueError):
        if name and Path(place := model_path(name)).is_dir():
            return Path(os.path.realpath(place))
    return None


def _differing(theirs: Path, ours: Path) -> str | None:
    """Return the name of a tensor whose numbers differ; None where none does, or none can be compared."""
    try:
        one, other = _places(theirs), _places(ours)
        names = [name for name in one if name in other]
        for name in names[:: max(1, len(names) // _TENSORS)]:
            first, second = _numbers(one[name], name), _numbers(other[name], name)
            if first is not None and second is not None and not _same(first, second):
                return name
    except (OSError, SafetensorError):  # what cannot be read says nothing
        pass
    return None


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype == other.dtype:
        return torch.equal(one, other)
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=_ROUNDING, atol=1e-6)


def _places(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _numbers(file: Path, name: str) -> torch.Tensor | None:
    """Return the first numbers of a tensor, with little of it read."""
    with safe_open(str(file), "pt") as opened:
        part: Any = opened.get_slice(name)
        found = part[:1] if len(part.get_shape()) else opened.get_tensor(name)
    return found.reshape(-1)[:_NUMBERS] if found.is_floating_point() and found.numel() else None
