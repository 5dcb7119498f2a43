"""Saved tensors against what they are to be copied into: names, shapes, kinds of numbers, and no NaN among them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..runtime.attachment import attachment, deltas_of, parameters_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "apart",
    "check_tensors",
    "fill",
    "parameters_of_others",
    "require_agreeing",
    "require_finite",
]


def check_tensors(
    targets: Mapping[str, Sequence[Tensor]],
    tensors: Mapping[str, Tensor],
    where: Any,
    *,
    strict: bool = True,
    try_: str = "the folder was changed, or belongs to another version",
) -> None:
    """Compare saved tensors with what they are to be copied into.

    Args:
        targets: Where each tensor goes, once or several times; may be on the meta device.
        tensors: What was saved.
        where: For the error.
        strict: Every key must be there, and no other.
        try_: For the error.

    Raises:
        CheckpointError: keys are missing, left over, of another shape or kind of number, or not finite; all differences
            are counted and the first ones listed.
    """
    pairs = {key: (tensors[key], same[0]) for key, same in targets.items() if key in tensors}
    missing = [f"missing {key}" for key in sorted(set(targets) - set(tensors))] if strict else []
    extra = [f"unexpected {key}" for key in sorted(set(tensors) - set(targets))] if strict else []
    shapes = [
        f"{key}: saved {list(saved.shape)}, here {list(here.shape)}"
        for key, (saved, here) in pairs.items()
        if saved.shape != here.shape
    ]
    kinds = [
        f"{key}: saved as {saved.dtype}, here {here.dtype}"
        for key, (saved, here) in pairs.items()
        if _kind(saved) != _kind(here)
    ]
    found = missing[:5] + extra[:5] + shapes[:5] + kinds[:5]
    if found:
        total = len(missing) + len(extra) + len(shapes) + len(kinds)
        raise CheckpointError(
            f"{total} tensors differ from what the configs make",
            where=str(where),
            got="; ".join(found),
            allowed=f"{len(targets)} tensors: {', '.join(sorted(targets)[:3])}{', ...' if len(targets) > 3 else ''}",
            try_=try_,
        )
    require_finite(tensors, where, {key: here for key, (_, here) in pairs.items()})


def require_finite(
    tensors: Mapping[str, Tensor], where: Any, targets: Mapping[str, Tensor | None] | None = None
) -> None:
    """Raise unless what is loaded holds numbers that stay finite where they go.

    Args:
        tensors: What was saved.
        where: For the error.
        targets: Where each tensor goes; others are not looked at. All of them by default, which are weights then.

    Raises:
        CheckpointError: a tensor of weights holds whole or complex numbers, NaN or Inf, or numbers too large for the
            dtype of its target. Buffers may be of any kind, and Inf may stand in them (masks), NaN may not.
    """
    chosen = dict.fromkeys(tensors) if targets is None else targets
    wrong = [f"{key}: {why}" for key, here in chosen.items() if (why := _why_not(tensors[key], here))]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of weights are not finite numbers",
            where=str(where),
            got="; ".join(wrong[:5]),
            allowed="floating-point numbers, neither NaN nor infinite in the dtype that they get here",
            try_="a checkpoint from before the training diverged",
        )


def _why_not(saved: Tensor, here: Tensor | None) -> str:
    weights = here is None or isinstance(here, nn.Parameter)
    if not saved.is_floating_point():
        return str(saved.dtype) if weights and (here is None or here.is_floating_point()) else ""
    # the smallest float formats know no isfinite of their own
    number = saved.to(torch.float32) if saved.element_size() == 1 else saved
    # One that is no number makes the sum none: one pass where all is well, and of a thousand tasks that is felt.
    well = math.isfinite(number.sum().item())
    if not well and (torch.isnan(number).any() or (weights and not torch.isfinite(number).all())):
        return "NaN or Inf"
    if here is not None and weights and here.dtype.itemsize < saved.dtype.itemsize:
        least = torch.finfo(here.dtype).max
        return f"numbers too large for {here.dtype}" if bool((number.abs() > least).any()) else ""
    return ""


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "whole"


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two are one: adapters that share a parameter have it each, to be read alone."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        found[key] = tensor.clone() if tensor.numel() and tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found


def parameters_of_others(model: PreTrainedModel, names: Iterable[str]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each other attached adapter with which one of ``names`` may share some."""
    chosen = set(names)
    # of a thousand tasks whose methods share nothing, none is looked at
    if not any(delta.ties_adapters and not chosen.isdisjoint(delta.names) for _, delta in deltas_of(model)):
        return {}
    others = [name for name in attachment(model).names if name not in chosen]
    return {name: list(parameters_of(model, name, own_modules=False).values()) for name in others}


def require_agreeing(
    targets: Mapping[str, Sequence[Tensor]],
    tensors: Mapping[str, Tensor],
    others: Mapping[str, Iterable[Tensor]],
    where: Any,
) -> None:
    """Refuse to overwrite what an adapter that is here shares with one that comes, and two values for one parameter.

    Args:
        targets: Where each tensor goes.
        tensors: What was saved.
        others: By name, the parameters of the adapters that are not loaded.
        where: For the error.

    Raises:
        CheckpointError: the values differ.
    """
    owners = {id(one): (f"adapter {name!r} of this model", one) for name, own in others.items() for one in own}
    for key in (key for key in targets if key in tensors):
        for target in targets[key]:
            owner, there = owners.setdefault(id(target), (f"{key} of the folder", tensors[key]))
            saved = tensors[key].to(target)
            if there is not tensors[key] and not torch.equal(saved, there.detach().to(target)):
                raise CheckpointError(
                    "an adapter shares parameters with others, and its values are not theirs",
                    where=str(where),
                    got=f"{key}, which differs from that of {owner}",
                    allowed="adapters of one group that were trained together and saved at one time",
                    try_="a base of its own: hfadapt.load(folder); or adapters that were saved at one time",
                )


def fill(targets: Mapping[str, Sequence[Tensor]], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors, which ``check_tensors`` let pass, into their targets."""
    with torch.no_grad():
        for key, same in targets.items():
            for target in same if key in tensors else ():
                target.copy_(tensors[key])
