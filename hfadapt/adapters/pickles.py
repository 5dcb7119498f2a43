"""Files of tensors that other libraries pickled: opened only where a caller asks for it, and without running code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import require_file

__all__ = ["read_pickle"]


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a ``.bin`` file of tensors by name, which nothing does unless it was asked for: no code in it is run.

    Raises:
        CheckpointError: it is missing, damaged, holds anything but tensors, or tensors that are larger than the file.
    """
    try:
        require_file(path)
    except OSError:
        raise CheckpointError(
            f"no {path.name}",
            where=str(path.parent),
            got="no file of that name",
            allowed="a file of tensors by name that torch.save wrote",
            try_=f"copy {path.name} from where the adapter was trained, or read a folder that has safetensors",
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a file of others
        got = f"{type(error).__name__}: {error}"[:300]
        raise CheckpointError(
            f"{path.name} cannot be read as tensors alone",
            where=str(path.parent),
            got=got,
            allowed="what torch.load(..., weights_only=True) reads",
            try_="write it anew from the trusted program: safetensors.torch.save_file(state_dict, path)",
        ) from None
    size = path.stat().st_size
    wrong = [str(type(found).__name__)] if not isinstance(found, dict) else []
    for key, value in found.items() if isinstance(found, dict) else ():
        plain = isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided
        # a view may repeat one number as often as it likes
        if not plain or value.is_quantized or value.is_meta or value.numel() * value.element_size() > size:
            wrong.append(str(key)[:80])
    if wrong:
        got = ", ".join(wrong[:5])
        raise CheckpointError(
            f"{path.name} holds more than tensors by name",
            where=str(path.parent),
            got=got,
            allowed="a dict of names and ordinary tensors, each with its own numbers in the file",
            try_="keep the state dict alone: torch.save({name: tensor.clone() for name, tensor in ...}, path)",
        )
    return {key: value.detach().clone().contiguous() for key, value in found.items()}
