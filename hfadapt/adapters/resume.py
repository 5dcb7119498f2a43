"""What Trainer resumes must be the run that wrote the checkpoint; anything else is refused before it is loaded.

Weights are loaded by name, the optimizer's state by position: with tasks or adapters in another order every weight
would find its place, and the moments of one task would go on with another's. A state dict does not say in which order
its run had its adapters, but the checkpoint's folder does, and the Trainer that reads it is found among the callers.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError, HFAdaptError
from ..method.method import expand
from ..runtime.attachment import find_attachment
from ..runtime.hook_tables import remove_load_hooks
from ..runtime.row_routing import routers_of
from .files import config_path, read_config
from .freeze import is_adapter

__all__ = [
    "install",
    "record_of",
    "refused",
    "require_names",
    "require_same_adapters",
    "require_same_shapes",
    "resumed_folder",
    "uninstall",
]

# Trainer's method that loads a model's weights before it loads the optimizer's state, and its argument: the folder.
_RESUMES = ("_load_from_checkpoint", "resume_from_checkpoint")
# Where a checkpoint says what it holds: the folder itself, or the part of it that holds the adapters.
_RECORDS = (".", "hfadapt")
_SHOWN = 5


def resumed_folder() -> Path | None:
    """Return the checkpoint from which a Trainer among the callers is resuming, or None."""
    module = sys.modules.get("transformers.trainer")
    frame: FrameType | None = inspect.currentframe() if module is not None else None
    method, argument = _RESUMES
    while frame is not None:
        if frame.f_code.co_name == method and isinstance(frame.f_locals.get("self"), module.Trainer):  # type: ignore[union-attr]
            return Path(frame.f_locals[argument])
        frame = frame.f_back
    return None


def require_same_adapters(model: nn.Module, record: Mapping[str, Any], folder: Path) -> None:
    attached = find_attachment(model)
    adapters = {} if attached is None else {name: one.configs for name, one in attached.adapters.items()}
    saved = record.get("adapters", {})
    require_names("adapters", tuple(saved), tuple(adapters), folder)
    for name, configs in adapters.items():
        if _configs(saved[name]) != configs:
            raise refused(
                folder,
                f"the checkpoint's adapter {name!r} is of another method",
                json.dumps(saved[name]),
                json.dumps([config.to_dict() for config in configs], default=str),
            )
    fused = () if attached is None else tuple(fuse.key for fuse in attached.fusions)
    saved_fused = tuple(",".join(map(str, entry["adapters"])) for entry in record.get("fusions", ()))
    require_names("fusion layers", saved_fused, fused, folder)
    saved_routers = tuple(",".join(map(str, names)) for names in record.get("routers", ()))
    require_names("routers", saved_routers, tuple(key for key, _ in routers_of(model)), folder)


def _configs(saved: Any) -> Any:
    try:
        # read anew, so that fields that a release added have their defaults
        return expand(saved) if saved else ()  # none: copied modules alone
    except (HFAdaptError, TypeError, ValueError, KeyError):
        return saved


def require_names(what: str, saved: Sequence[str], here: Sequence[str], folder: Path) -> None:
    if saved == here:
        return
    order = sorted(saved) == sorted(here)
    raise refused(
        folder,
        f"the checkpoint has its {what} in another order, and an optimizer's state goes by order"
        if order
        else f"the checkpoint is of other {what}",
        ", ".join(saved) or "none",
        ", ".join(here) or "none",
    )


def refused(folder: Path, what: str, got: str, allowed: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=str(folder),
        got=got,
        allowed=f"{allowed}, as this model has",
        try_="resume with the tasks, order and methods of the run that was cut off; or start a new run, whose "
        "model hfadapt.load or MultiTaskModel.from_pretrained reads from the checkpoint",
    )


def record_of(folder: Path | None) -> dict[str, Any] | None:
    """Return what a checkpoint says of itself; None where it says nothing."""
    for place in () if folder is None else (folder / one for one in _RECORDS):
        if config_path(place).is_file():
            return read_config(place)
    return None


def require_same_shapes(
    targets: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str, absent: Sequence[str] = ()
) -> None:
    """Refuse tensors of another shape before any of them is copied.

    Args:
        targets: What the model has, by name.
        given: What is to be loaded.
        where: For the message.
        absent: Further differences, each in words.

    Raises:
        CheckpointError: there are differences; they are listed.
    """
    shapes = [
        f"{key}: saved {list(tensor.shape)}, here {list(targets[key].shape)}"
        for key, tensor in given.items()
        if key in targets and tensor.shape != targets[key].shape
    ]
    found = [*absent, *shapes]
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CheckpointError(
            f"{len(found)} tensors differ from this model's",
            where=where,
            got="; ".join(found[:_SHOWN]) + more,
            allowed=f"{len(targets)} tensors of this model's names and shapes",
            try_="the adapters, methods and heads of the run that was cut off; nothing was loaded",
        )


class _RequireSame:
    """Checks what Trainer hands to ``load_state_dict`` of an adapted stock model; an object, to be pickled."""

    def __call__(self, module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *others: Any) -> None:
        attached = find_attachment(module)
        # A model of several tasks has checked before it calls its base; by hand a part may be loaded on purpose.
        folder = None if attached is None or attached.inside else resumed_folder()
        if folder is None:
            return
        record = record_of(folder)
        if record is not None:
            require_same_adapters(module, record, folder)
        targets = module.state_dict(keep_vars=True)
        given = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        # tied ones are written once, under any of their names
        there = {id(targets[key]) for key in given if key in targets}
        own = (key for key, tensor in targets.items() if _is_own(key, tensor) and id(tensor) not in there)
        missing = [f"missing {key}" for key in own]
        unexpected = [f"unexpected {key}" for key in given if is_adapter(key) and key not in targets]
        require_same_shapes(targets, given, str(folder), [*missing, *unexpected])


def _is_own(key: str, tensor: Tensor) -> bool:
    return is_adapter(key) or tensor.requires_grad


def install(model: nn.Module) -> None:
    """Check what Trainer resumes on an adapted stock model."""
    model.register_load_state_dict_pre_hook(_RequireSame())


def uninstall(model: nn.Module) -> None:
    """Check no longer."""
    remove_load_hooks(model, _RequireSame)
