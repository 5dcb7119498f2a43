"""Adapters that stand on another device than the module they change: which one it is, where, and what puts it right.

Looked for when a call has failed, so that a call that works pays nothing: torch and the ops refuse tensors of two
devices before anything is computed, in words that name no adapter.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import AttachError
from .attachment import slots_of

__all__ = ["name_elsewhere", "tensors_elsewhere"]

Named = tuple[str, Tensor]


def tensors_elsewhere(tensors: Iterable[Named], device: torch.device) -> list[Named]:
    """Return those that are not on ``device``; single numbers may be anywhere, for torch reads them from the CPU."""
    return [(name, t) for name, t in tensors if t.device != device and (t.dim() or t.device.type != "cpu")]


def name_elsewhere(model: nn.Module, error: Exception) -> None:
    """Raise where parameters of an adapter stand elsewhere than the module that they change; return where none does.

    An adapter's own copies of modules are not looked at: what they read is moved to them.

    Args:
        model: An adapted model, or a module inside of one.
        error: What its call failed with, which becomes the cause.

    Raises:
        AttachError: of the first module that has such parameters.
    """
    place = _base_device(model)
    for path, slot in slots_of(model):
        leaf = model.get_submodule(path)
        _require(path or type(model).__name__, [*slot.deltas.named_parameters(), *slot.fusions.named_parameters()],
                 _base_device(leaf) or place, error)  # fmt: skip
    shared = getattr(model, "hfadapt_shared", None)
    if isinstance(shared, nn.ModuleDict):
        _require("hfadapt_shared", list(shared.named_parameters()), place, error)


def _require(path: str, tensors: list[Named], place: torch.device | None, error: Exception) -> None:
    # A base on meta has no numbers, or whoever loads them for the call (offloading) knows where it runs.
    found = [] if place is None or place.type == "meta" else tensors_elsewhere(tensors, place)
    if not found:
        return
    name, tensor = found[0]
    more = f" and {len(found) - 1} more of its parameters" if len(found) > 1 else ""
    raise AttachError(
        "an adapter stands on another device than the module that it changes",
        where=path,
        got=f"{name} {list(tensor.shape)} on {tensor.device}{more}",
        allowed=f"on {place}, where {path} is",
        try_="hfadapt.load(folder, model=model) again: what is on meta has no numbers"
        if tensor.is_meta
        else f"model.to({str(place)!r}), which moves a model together with its adapters",
    ) from error


def _base_device(module: nn.Module) -> torch.device | None:
    """Where the base's own parameters of a module are; None where it has none."""
    for name, parameter in module.named_parameters():
        if "hfadapt" not in name.split(".") and not name.startswith("hfadapt_shared."):
            return parameter.device
    return None
