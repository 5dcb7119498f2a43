"""What ``attach`` changes on a model as a whole, each change beside what takes it back.

The first adapter walks through them forwards, the last one that goes walks back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from ..method.site import Site
from ..runtime import attention, embedding_hooks, generate, relative_positions
from ..runtime.attachment import Attachment
from ..runtime.checkpointing import CheckpointWithRouting
from ..runtime.leaf_hooks import remove_our_hooks
from ..runtime.parallel_pieces import take_trunk
from ..runtime.root_hooks import put_forward, take_forward
from . import resume, save_hooks

if TYPE_CHECKING:
    from ..architecture import ArchitectureMap

__all__ = [
    "EDITS",
    "begin",
    "change_map",
    "chunked_layers",
    "end",
    "restore_attention",
    "restore_chunks",
    "restore_map",
    "stop_chunking",
]

#: The attribute of transformers' layers that run their feed-forward part in chunks, which taps cannot follow.
_CHUNKS = "chunk_size_feed_forward"

_Change = Callable[[PreTrainedModel, Attachment], None]


def _nothing(model: PreTrainedModel, state: Attachment) -> None:
    """The change is made later, where a method needs it."""


@dataclass(frozen=True)
class Edit:
    """One change of a model.

    Args:
        install: Makes it, for the first adapter.
        uninstall: Takes it back, behind the last.
    """

    install: _Change
    uninstall: _Change


def _note_what_trains(model: PreTrainedModel, state: Attachment) -> None:
    state.original_requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}


def _restore_what_trains(model: PreTrainedModel, state: Attachment) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(state.original_requires_grad.get(name, parameter.requires_grad))


def _put_forwards(model: PreTrainedModel, state: Attachment) -> None:
    """The root, its base, and the owners of stacks: ``generate`` calls an encoder on its own, past the root."""
    model.__dict__["_hfadapt"] = state
    state.decoder_paths = _decoders(state.arch)
    for path, module in _roots(model, state.arch).items():
        if module.__dict__.get("_hfadapt_of") is state:
            continue
        module.__dict__["_hfadapt_of"] = state
        put_forward(module, path)


def _roots(model: PreTrainedModel, arch: ArchitectureMap) -> dict[str, nn.Module]:
    base = getattr(model, "base_model", model)
    owners = {stack.path.rpartition(".")[0] for stack in arch.stacks}
    return {"": model, **{n: m for n, m in model.named_modules() if m is base or n in owners}}


def _take_forwards(model: PreTrainedModel, state: Attachment) -> None:
    for module in model.modules():
        if module.__dict__.pop("_hfadapt_of", None) is not None:
            take_forward(module)
    del model.__dict__["_hfadapt"]


def _remove_every_hook(model: PreTrainedModel, state: Attachment) -> None:
    for module in model.modules():
        remove_our_hooks(module)
    take_trunk(model)


def _restore_checkpointing(model: PreTrainedModel, state: Attachment) -> None:
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(function, CheckpointWithRouting):
            module.__dict__["_gradient_checkpointing_func"] = function.function


def _drop_shared(model: PreTrainedModel, state: Attachment) -> None:
    if hasattr(model, "hfadapt_shared"):
        del model.hfadapt_shared


def restore_attention(model: PreTrainedModel, state: Attachment) -> None:
    """Give the model the attention implementation back that it had before deltas sat in its attention."""
    if state.original_attention is not None:
        attention.disable(model, state.original_attention)
        state.original_attention = None


def chunked_layers(model: PreTrainedModel, state: Attachment, site: Site) -> Iterator[str]:
    """Yield the path of the layer of ``site`` if it runs its feed-forward part in chunks."""
    stack = next((s for s in state.arch.stacks if s.path == site.stack), None)
    if stack is not None and site.layer < stack.num_layers:
        path = stack.layer_paths[site.layer]
        if getattr(model.get_submodule(path), _CHUNKS, 0):
            yield path


def stop_chunking(model: PreTrainedModel, state: Attachment, site: Site) -> None:
    """Let the layer of ``site`` run whole: chunks would meet a source that holds all tokens, and only save memory."""
    for path in chunked_layers(model, state, site):
        layer = model.get_submodule(path)
        state.original_chunk_sizes.setdefault(path, int(getattr(layer, _CHUNKS)))
        setattr(layer, _CHUNKS, 0)


def restore_chunks(model: PreTrainedModel, state: Attachment, kept: tuple[str, ...] = ()) -> None:
    """Let layers run in chunks again, but for those at ``kept``."""
    for path in [path for path in state.original_chunk_sizes if path not in kept]:
        setattr(model.get_submodule(path), _CHUNKS, state.original_chunk_sizes.pop(path))


def _forget_compiled(model: PreTrainedModel, state: Attachment) -> None:
    """What dynamo compiled for this model's modules does not know of hooks that come or go now."""
    torch._dynamo.reset()


EDITS = (
    Edit(_forget_compiled, _forget_compiled),
    Edit(_note_what_trains, _restore_what_trains),
    Edit(_put_forwards, _take_forwards),
    Edit(
        lambda model, state: relative_positions.install(model, state.arch),
        lambda model, state: relative_positions.uninstall(model, state.arch),
    ),
    Edit(lambda model, state: generate.install(model), lambda model, state: generate.uninstall(model)),
    # A checkpoint without its base is filled up before it is judged.
    Edit(lambda model, state: save_hooks.install(model), lambda model, state: save_hooks.uninstall(model)),
    Edit(lambda model, state: resume.install(model), lambda model, state: resume.uninstall(model)),
    Edit(_nothing, _drop_shared),
    Edit(_nothing, restore_attention),
    Edit(_nothing, restore_chunks),
    Edit(_nothing, lambda model, state: embedding_hooks.give_back(model)),
    Edit(_nothing, _restore_checkpointing),
    Edit(_nothing, _remove_every_hook),
)


def change_map(model: PreTrainedModel, state: Attachment, arch: ArchitectureMap) -> None:
    """Give an adapted model a map of its stacks, in place of one that knew the names of modules alone."""
    state.arch = arch
    state.decoder_paths = _decoders(arch)
    _put_forwards(model, state)
    relative_positions.install(model, arch)


def restore_map(model: PreTrainedModel, state: Attachment, arch: ArchitectureMap) -> None:
    """Take back what `change_map` changed.

    Args:
        model: The adapted model.
        state: What is attached to it.
        arch: The map that it had before.
    """
    if state.arch is arch:
        return
    relative_positions.uninstall(model, state.arch)
    kept = _roots(model, arch)
    for path, module in _roots(model, state.arch).items():
        if path not in kept and module.__dict__.pop("_hfadapt_of", None) is not None:
            take_forward(module)
    state.arch = arch
    state.decoder_paths = _decoders(arch)
    relative_positions.install(model, arch)


def _decoders(arch: ArchitectureMap) -> tuple[str, ...]:
    """Where the decoders of a model of several stacks stand."""
    decoders = (stack.path for stack in arch.stacks if stack.kind == "decoder" and len(arch.stacks) > 1)
    return tuple(path.rpartition(".")[0] for path in decoders)


def begin(model: PreTrainedModel, state: Attachment) -> None:
    """Make ``model`` an adapted one whose state is ``state``."""
    for edit in EDITS:
        edit.install(model, state)


def end(model: PreTrainedModel, state: Attachment) -> None:
    """Make it bit for bit what it was before."""
    for edit in reversed(EDITS):
        edit.uninstall(model, state)
