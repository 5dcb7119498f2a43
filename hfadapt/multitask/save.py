"""What a save of ``MultiTaskModel`` holds: one folder for hfadapt, for ``AutoModel`` and for Trainer.

``hfadapt_config.json`` and the weights are the format of ``adapters/save.py`` with heads and, where the base was
trained, its weights. ``config.json`` tells ``AutoModel`` that the folder is ours. The weights stand in
``model.safetensors``, the only file from which Trainer resumes or reloads the best model, and nowhere else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..adapters import files as adapter_files
from ..adapters.atomic import atomic_folder
from ..adapters.base_identity import TOKENS, token_rows
from ..adapters.folder_config import is_marked
from ..adapters.occupied import refuse_foreign
from ..adapters.save import describe, prefix_of, saved_parameters
from ..adapters.saved_tensors import check_tensors, fill
from ..errors import CheckpointError
from ..errors.arguments import require_folder, require_mapping
from ..runtime.shards import gathered, own_class, whole
from .task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["KEY", "apply", "is_partial", "is_saved", "save_multi_task"]

logger = logging.getLogger(__name__)

KEY = "multi_task"
_OTHER_MODEL = "the folder was changed, or was saved with other tasks, another method or another train_base"


class Saved(Protocol):
    """What a save asks of a model, which is `MultiTaskModel`."""

    base: PreTrainedModel
    heads: nn.ModuleDict
    tasks: tuple[Task, ...]
    ids: tuple[int, ...]
    routes: dict[str, str]
    config: Any

    def state_dict(self, *, keep_vars: bool = ...) -> dict[str, Tensor]: ...


def is_saved(folder: str | os.PathLike[str]) -> bool:
    """Say whether ``folder`` holds a saved ``MultiTaskModel``, whole or damaged."""
    path = require_folder(folder, where="MultiTaskModel.from_pretrained")
    if not path.is_dir():
        return False
    adapter_files.settle_for_reading(path)
    return adapter_files.config_path(path).is_file() or is_marked(path)


def _require_keys(model: Saved, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return ``file_keys`` of a model, all of which ``weights`` hold.

    Raises:
        CheckpointError: it lacks one.
    """
    where, allowed = "save_pretrained(state_dict=...)", "the model's own names, as model.state_dict() has them"
    require_mapping("state_dict", weights, where=where, allowed=allowed, error=CheckpointError)
    keys = file_keys(model)
    missing = [own for own in keys.values() if own not in weights]
    if missing:
        raise CheckpointError(
            "weights are missing",
            where=where,
            got=f"no {', '.join(missing[:3])}",
            allowed=allowed,
            try_="state_dict=model.state_dict(), gathered from every shard; or leave it out",
        )
    return keys


def file_keys(model: Saved) -> dict[str, str]:
    """Return, for each tensor that a save writes, its key in the file and its key in ``model.state_dict()``."""
    base, prefix = model.base, prefix_of(model.base)
    adapters = saved_parameters(base, own_modules=True)
    keys = {key.removeprefix(prefix): f"base.{key}" for key in adapters}
    keys.update({f"heads.{key}": f"heads.{key}" for key in model.heads.state_dict()})
    keys.update({f"base.{name}": f"base.{name}" for name in _trained_base(model, adapters)})
    return keys


def _trained_base(model: Saved, adapters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of base parameters (and, with a trained base, buffers) that a save must hold."""
    inside = {id(p) for p in adapters.values()}
    names = [n for n, p in model.base.named_parameters() if p.requires_grad and id(p) not in inside]
    if model.config.train_base:
        parameters = dict(model.base.named_parameters(remove_duplicate=False))
        persistent = model.base.state_dict()
        names = [n for n, p in model.base.named_parameters() if id(p) not in inside and n not in adapters]
        names += [n for n in persistent if n not in parameters]
    return names


def is_partial(model: Saved, state_dict: Mapping[str, Tensor]) -> bool:
    """Say whether a state dict is that of a saved folder: it lacks base weights, or names adapters as files do."""
    own = model.state_dict()
    return any(key not in own for key in state_dict) or any(key not in state_dict for key in own)


def apply(model: Saved, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors of a saved folder into the model.

    Raises:
        CheckpointError: keys are missing, left over or of another shape; the differences are listed and nothing is
            copied.
    """
    keys = file_keys(model)
    targets = model.state_dict(keep_vars=True)
    # Trainer may also hand over a dict that it gathered under the model's own names
    by_own_name = {own: key for key, own in keys.items()}
    given = {by_own_name.get(key, key): tensor for key, tensor in tensors.items() if not key.startswith(TOKENS)}
    by_key = {key: [targets[own]] for key, own in keys.items()}
    check_tensors(by_key, given, where, try_=_OTHER_MODEL)
    if not any(tensor.is_meta for (tensor,) in by_key.values()):  # else it is only tried
        fill(by_key, given)


def save_multi_task(
    model: Saved,
    folder: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor] | None = None,
    push: bool = False,
) -> None:
    """Write the folder, atomically.

    Args:
        model: What to save.
        folder: Made if it is missing; other files in it stay, but for Trainer's state of the weights that are replaced
            in a folder ``checkpoint-N``.
        state_dict: Weights to write in place of the model's, by the model's own names (gathered from shards).
        push: Whether the folder was to be uploaded too, which is refused.

    Raises:
        CheckpointError: the files cannot be written, the folder holds a model or an adapter of another library's, or it
            was to be uploaded.
    """
    if push:
        raise CheckpointError(
            "save_pretrained writes a folder and uploads none",
            where=str(folder),
            got="push_to_hub=True",
            allowed="push_to_hub=False",
            try_="model.push_to_hub(repo_id), which saves and uploads",
        )
    if model.ids != tuple(range(len(model.ids))):
        shown = ", ".join(f"{task.name}: {i}" for i, task in zip(model.ids, model.tasks, strict=True))
        logger.warning("the folder counts its tasks from 0, and the model's ids have gaps (%s)", shown)
    weights = model.state_dict() if state_dict is None else state_dict
    tensors = {key: whole(weights[own]) for key, own in _require_keys(model, weights).items()}
    tensors |= token_rows(model.base, weights, "base.")
    extra = {
        KEY: {
            "tasks": [task.to_dict() for task in model.tasks],
            "train_base": model.config.train_base,
            "base_config": model.base.config.to_dict(),
            "routes": model.routes,
        }
    }
    refuse_foreign(folder)
    # Who hands over a state dict has gathered it, and chosen who writes.
    with gathered(cast(nn.Module, model), ()) if state_dict is None else nullcontext(True) as writes:
        if writes:
            _write(model, folder, tensors, extra)


def _write(
    model: Saved, folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], extra: Mapping[str, Any]
) -> None:
    with atomic_folder(folder, dropped=adapter_files.outdated(folder)) as temporary:
        # tied tensors are listed once in file_keys; clones keep views of one storage apart
        packed = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
        }
        adapter_files.write_files(temporary, {**describe(model.base), **extra}, packed, adapter_files.TRAINER_FILE)
        model.config.architectures = [own_class(cast(nn.Module, model)).__name__]
        model.config.save_pretrained(temporary)
