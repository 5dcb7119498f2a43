"""What commands load: a saved folder of any kind, on the base that it records or on another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_saved"]


def load_saved(folder: Path, base: str | None) -> PreTrainedModel:
    """Put what a folder holds on its base, or on another that the caller named.

    Raises:
        CheckpointError: see ``hfadapt.load``; or the base of another library's folder is named.
    """
    from ..adapters.base_identity import dtype_option, label_options
    from ..adapters.base_model import load_base
    from ..adapters.files import read_config
    from ..adapters.foreign import find_format
    from ..errors import CheckpointError
    from ..multitask.load import load
    from ..multitask.model import MultiTaskModel
    from ..multitask.save import KEY

    if base is None:
        return load(folder)
    if find_format(folder, None) is not None:
        raise CheckpointError(
            "another library's folder says no class for its base, which so cannot be named here",
            where=str(folder),
            got=f"--base {base}",
            allowed="folders that hfadapt saved",
            try_="hfadapt.load(folder, model) in Python",
        )
    data = read_config(folder)
    if KEY in data:
        return MultiTaskModel.from_pretrained(str(folder), base=base)
    options = {**dtype_option(data, folder), **(label_options(data) if data.get("head") else {})}
    return load(folder, load_base(folder, data["model_class"], base, options))
