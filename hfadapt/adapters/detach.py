"""detach: taking adapters off a model, and giving it back what ``attach`` changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..routing.choice import Choice
from ..routing.composition import Composition, adapter_names
from ..runtime import generate as generating
from ..runtime.attachment import Attachment, attachment, deltas_of, slots_of, uncompiled
from ..runtime.checkpointing import CheckpointWithRouting
from ..runtime.embedding_hooks import give_back
from ..runtime.fused_norm import unfuse_norm
from ..runtime.leaf_hooks import InputHook, OutputHook, remove_hooks
from ..runtime.relative_positions import uninstall
from ..runtime.root_hooks import take_forward
from ..runtime.slot import fused_node
from ..runtime.watch import watch
from . import resume as resuming
from . import save_hooks as saving
from .own_copies import drop_copies

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CHUNKS", "detach", "drop_fusions"]

#: The attribute of transformers' layers that run their feed-forward part in chunks, which taps cannot follow.
CHUNKS = "chunk_size_feed_forward"


def detach(model: PreTrainedModel, names: str | Iterable[str] | None = None) -> None:
    """Take adapters off a model (all of them by default).

    When the last one goes, every hook, child module and flag of hfadapt goes too: the model is bit for bit what it was
    before ``attach``, ``requires_grad`` and attention implementation included.

    Raises:
        AttachError: nothing is attached, or there is no adapter of that name.
    """
    model = uncompiled(model)
    state = attachment(model)
    gone = [names] if isinstance(names, str) else list(state.names if names is None else names)
    for name in gone:
        state.require(name)
    lost = state.watch.lost() if state.watch is not None else ()
    for name in gone:
        for _, delta in list(deltas_of(model, name)):
            delta.remove(name)
        if state.shared is not None and name in state.shared:
            del state.shared[name]
        del state.adapters[name]
    state.compositions = {k: v for k, v in state.compositions.items() if not _mentions(v, gone)}
    drop_fusions(model, state, gone)
    drop_copies(model, gone)
    if state.active is not None and (_mentions(state.active, gone) or not state.adapters):
        state.choice = Choice()
    state.choose_default()
    state.changed()
    for path, slot in list(slots_of(model)):
        if slot.drop_empty():
            leaf = model.get_submodule(path)
            remove_hooks_of_slot(leaf)
            unfuse_norm(leaf)
            del leaf.hfadapt
    if state.adapters:
        watch(model, state, lost)
    else:
        _end(model, state)


def drop_fusions(model: PreTrainedModel, state: Attachment, gone: list[str]) -> None:
    """Remove the fusion layers over adapters that are gone."""
    old = [node for node in state.fusions if _mentions(node, gone)]
    for node in old:
        del state.fusions[node]
        drop_copies(model, [node.key])
        for _, slot in slots_of(model):
            for key in [k for k in slot.fusions if fused_node(k) == node.key]:
                del slot.fusions[key]


def remove_hooks_of_slot(leaf: nn.Module) -> None:
    """Remove the hooks that run deltas; taps at the same module may serve other slots and stay."""
    for table, kinds in ((leaf._forward_hooks, OutputHook), (leaf._forward_pre_hooks, InputHook)):
        for key in [k for k, hook in table.items() if isinstance(hook, kinds)]:
            del table[key]
    for key in [k for k in leaf._forward_pre_hooks_with_kwargs if k not in leaf._forward_pre_hooks]:
        del leaf._forward_pre_hooks_with_kwargs[key]


def _mentions(node: Any, names: list[str]) -> bool:
    if isinstance(node, (str, Composition)):
        return any(n in names for n in adapter_names(node))
    return True


def _end(model: PreTrainedModel, state: Attachment) -> None:
    for module in model.modules():
        remove_hooks(module)
        if module.__dict__.pop("_hfadapt_of", None) is not None:
            take_forward(module)
        function = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(function, CheckpointWithRouting):
            module.__dict__["_gradient_checkpointing_func"] = function.function
    give_back(model)
    uninstall(model, state.arch)
    generating.uninstall(model)
    resuming.uninstall(model)
    saving.uninstall(model)
    if hasattr(model, "hfadapt_shared"):
        del model.hfadapt_shared
    if state.original_attention is not None:
        from ..runtime import attention

        attention.disable(model, state.original_attention)
    for path, size in state.original_chunk_sizes.items():
        setattr(model.get_submodule(path), CHUNKS, size)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(state.original_requires_grad.get(name, parameter.requires_grad))
    del model.__dict__["_hfadapt"]
    torch._dynamo.reset()
