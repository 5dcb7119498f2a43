"""What a folder says of peft's adapters beside which its own were trained: without them they compute something else."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..runtime.attachment import deltas_of
from ..runtime.beside_peft import digests, inside_peft

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["check_peft", "describe_peft", "require_in_place"]

logger = logging.getLogger(__name__)


def describe_peft(model: nn.Module) -> dict[str, Any]:
    """Return what ``hfadapt_config.json`` says of peft's adapters in a model; nothing where there are none."""
    found = digests(model)
    return {"beside": {"peft": found}} if found else {}


def require_in_place(model: PreTrainedModel, names: Iterable[str], folder: str | os.PathLike[str]) -> None:
    """Refuse to save adapters that stand inside of peft's layers, at paths which no other model has.

    Raises:
        CheckpointError: peft took a module into a layer of its own after ours was attached to it.
    """
    leaves = {path.partition(".hfadapt.")[0] for name in names for path, _ in deltas_of(model, name)}
    within = {layer for leaf in leaves if (layer := inside_peft(model, leaf))}
    if within:
        raise CheckpointError(
            "peft took modules that adapters sit on into layers of its own, and no other model has them there",
            where=str(folder),
            got=f"{len(within)} layers, such as {min(within)}",
            allowed="adapters on the model's own modules, or attached behind peft's",
            try_="peft_model.unload() or peft_model.merge_and_unload(), which puts the modules back, and save then; "
            "peft's own adapter is saved by peft",
        )


def check_peft(data: Mapping[str, Any], model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Raise unless a base has those of peft's adapters beside which a folder's were trained, with their numbers.

    Raises:
        CheckpointError: one is missing, or holds other numbers.
    """
    wanted, here = (data.get("beside") or {}).get("peft", {}), digests(model)
    missing = [name for name in wanted if name not in here]
    other = [name for name in wanted if name in here and here[name] != wanted[name]]
    if missing or other:
        raise CheckpointError(
            "the folder's adapters were trained beside adapters of peft's, and compute something else without them",
            where=str(folder),
            got=", ".join([*(f"no adapter {name!r}" for name in missing), *(f"another {name!r}" for name in other)]),
            allowed=f"a base with peft's {', '.join(map(repr, wanted))}, as they were at the save",
            try_="PeftModel.from_pretrained(base, folder of peft's), then hfadapt.load(folder, model="
            "peft_model.get_base_model())",
        )
    if here and not wanted:
        logger.warning("%s: its adapters were trained without peft's %s, which this base has", folder, ", ".join(here))
