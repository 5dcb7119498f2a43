"""Notices a ``forward`` of others that runs the base and reads the head's weights, past the adapters at the head.

A loss that is fused with the head never makes the logits of all tokens (TRL's trainers, Liger's kernels): it stands in
place of the model's ``forward``, calls the base, and multiplies by ``lm_head.weight``. An adapter at the head would be
trained and saved and do nothing. Such a loss may have come after the adapters, so that the pass begins at the base, or
before them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from torch import nn

from ..errors import AttachError
from .slot import Slot

__all__ = ["check_begin", "head_runs"]

_Output = TypeVar("_Output")
_SHOWN = 3


def check_begin(model: nn.Module, path: str, names: Collection[str]) -> None:
    """Raise where a pass begins below the model because its own ``forward`` was replaced after the adapters came.

    Whoever calls the base of a model by hand may want no head; then the model's ``forward`` is still ours.

    Args:
        model: The adapted model.
        path: Where the pass begins.
        names: The adapters that it uses.

    Raises:
        AttachError: an adapter of the pass has a place outside of ``path``.
    """
    # a wrapper has no token of an attachment
    if not hasattr(model.__dict__.get("forward"), "token"):
        outside = list(_slots_outside(model, path, names))
        if outside:
            raise _error(model, outside)


def head_runs(model: nn.Module, names: Collection[str], call: Callable[[], _Output]) -> _Output:
    """Make a call of a model whose ``forward`` was wrapped before the adapters came, and see that it runs its head.

    Args:
        model: The adapted model.
        names: The adapters that it uses.
        call: Makes it.

    Raises:
        AttachError: adapters outside of the model's base did not run, though the base did.
    """
    base = getattr(model, "base_model", model)
    path = next((path for path, module in model.named_modules() if module is base), "")
    ran: set[int] = set()
    outside = dict(_slots_outside(model, path, names)) if path else {}
    parts = {slot: (*slot.deltas.values(), *slot.copies.values()) for slot in outside.values()}
    hooks = [part.register_forward_hook(_Note(ran, slot)) for slot in parts for part in parts[slot]]
    hooks.append(base.register_forward_hook(_Note(ran, base)))
    try:
        output = call()
    finally:
        for hook in hooks:
            hook.remove()
    silent = [(where, slot) for where, slot in outside.items() if id(slot) not in ran]
    if silent and id(base) in ran:
        raise _error(model, silent)
    return output


class _Note:
    def __init__(self, ran: set[int], whose: nn.Module) -> None:
        self.ran = ran
        self.whose = id(whose)

    def __call__(self, *call: Any) -> None:
        self.ran.add(self.whose)


def _slots_outside(model: nn.Module, path: str, names: Collection[str]) -> Iterator[tuple[str, Slot]]:
    """Yield the places outside of ``path`` that some adapters have."""
    used = set(names)
    for where, slot in model.named_modules():
        if isinstance(slot, Slot) and not where.startswith(f"{path}."):
            deltas = (name for delta in slot.deltas.values() for name in getattr(delta, "names", ()))
            copies = (name for owner in slot.copies for name in owner.split(","))
            if used.intersection(deltas) or used.intersection(copies):
                yield where.removesuffix(".hfadapt"), slot


def _error(model: nn.Module, places: list[tuple[str, Slot]]) -> AttachError:
    return AttachError(
        "the model's forward was replaced by one that does not run every module that adapters sit on",
        where=type(model).__name__,
        got=f"adapters at {', '.join(where for where, _ in places[:_SHOWN])} that would do nothing",
        allowed="a forward that calls these modules",
        try_="target_modules and modules_to_save without them; or a loss that is not fused with the head",
    )
