"""``load``: finds out what a folder holds, and reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.files import read_config
from ..adapters.load import load_adapters
from ..adapters.save_hooks import SIDE_FOLDER, base_beside, is_whole
from .model import MultiTaskModel
from .save import KEY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load"]


def load(
    folder: str | os.PathLike[str], model: PreTrainedModel | None = None, *, strict: bool = True
) -> PreTrainedModel:
    """Put saved adapters on a base, or load a ``MultiTaskModel``.

    Args:
        folder: Written by ``save``; or by ``save_pretrained`` of an adapted model, as Trainer and other libraries call
            it, which holds the base too.
        model: The base; by default the one named in the folder, with ``from_pretrained``.
        strict: Every key must be there, with its shape, and no other; and the base's config must be the same in all
            that decides shapes and computation. Otherwise fields may differ that no stock code reads.

    Returns:
        ``model`` (or the new one), adapted; adapters that were there stay.

    Raises:
        CheckpointError: the files are damaged, belong to another base, or differ from what the configs make.
    """
    if is_whole(folder):
        return load_adapters(Path(folder) / SIDE_FOLDER, base_beside(folder, model), strict=strict)
    if (model is None or isinstance(model, MultiTaskModel)) and KEY in read_config(folder):
        return MultiTaskModel.from_pretrained(str(folder))
    return load_adapters(folder, model, strict=strict)
