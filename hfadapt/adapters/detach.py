"""detach: taking adapters off a model, and giving it back what ``attach`` changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors.names import names_of
from ..routing.choice import Choice
from ..routing.composition import Composition, adapter_names
from ..runtime.attachment import Attachment, attachment, deltas_of, slots_of, uncompiled
from ..runtime.fused_norm import unfuse_norm
from ..runtime.hook_tables import remove_hooks
from ..runtime.inner_convolution import leave_convolution
from ..runtime.leaf_hooks import InputHook, OutputHook
from ..runtime.numbering import NumbersHook, RowsOfNumbersHook
from ..runtime.slot import fused_node
from ..runtime.updated_forward import take_updates
from ..runtime.watch import watch
from . import edits
from .own_copies import drop_copies
from .router import drop_routers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["detach", "drop_fusions"]

_OF_DELTAS = (InputHook, OutputHook, NumbersHook, RowsOfNumbersHook)


def detach(model: PreTrainedModel, names: str | Iterable[str] | None = None) -> None:
    """Take adapters off a model (all of them by default).

    When the last one goes, every hook, child module and flag of hfadapt goes too: the model is bit for bit what it was
    before ``attach``, ``requires_grad`` and attention implementation included.

    Raises:
        AttachError: nothing is attached, or there is no adapter of that name.
    """
    model = uncompiled(model)
    state = attachment(model)
    gone = state.names if names is None else names_of(names)
    for name in gone:
        state.require(name)
    gone = list(dict.fromkeys(gone))
    lost = state.watch.lost() if state.watch is not None else ()
    for name in gone:
        for _, delta in list(deltas_of(model, name)):
            delta.remove(name)
        if state.shared is not None and name in state.shared:
            del state.shared[name]
        del state.adapters[name]
    state.compositions = {k: v for k, v in state.compositions.items() if not _mentions(v, gone)}
    drop_fusions(model, state, gone)
    drop_routers(model, state, gone)
    drop_copies(model, gone)
    if state.active is not None and (_mentions(state.active, gone) or not state.adapters):
        state.choice = Choice()
    state.choose_default()
    state.changed()
    for path, slot in list(slots_of(model)):
        if slot.drop_empty():
            leaf = model.get_submodule(path)
            # taps at the same module may serve other slots and stay
            remove_hooks(leaf, lambda hook: isinstance(hook, _OF_DELTAS))
            unfuse_norm(leaf)
            take_updates(leaf)
            leave_convolution(leaf)
            del leaf.hfadapt
    if state.adapters:
        watch(model, state, lost)
    else:
        edits.end(model, state)


def drop_fusions(model: PreTrainedModel, state: Attachment, gone: list[str]) -> None:
    """Remove the fusion layers over adapters that are gone."""
    old = [node for node in state.fusions if _mentions(node, gone)]
    for node in old:
        del state.fusions[node]
        drop_copies(model, [node.key])
        for _, slot in slots_of(model):
            for key in [k for k in slot.fusions if fused_node(k) == node.key]:
                del slot.fusions[key]


def _mentions(node: Any, names: list[str]) -> bool:
    if isinstance(node, (str, Composition)):
        return any(n in names for n in adapter_names(node))
    return True
