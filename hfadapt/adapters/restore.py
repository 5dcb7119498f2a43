"""Putting what a folder describes on a model all or not at all: tried on an empty copy first, undone where it fails."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, HFAdaptError
from ..method.delta import Weights
from ..runtime.attachment import find_attachment
from ..runtime.leaf_hooks import Hook
from ..runtime.packing import packed_weights
from ..runtime.parts import others_shared, others_weights, parts_of, tensors_in
from ..runtime.watch import watch
from .detach import detach
from .edits import restore_attention, restore_chunks, restore_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..runtime.attachment import Attachment

__all__ = ["all_or_nothing", "as_described", "hook_tables", "meta_copy", "rehearsal"]


def meta_copy(model: PreTrainedModel, *, joins: bool = True) -> PreTrainedModel:
    """Return a copy of a model whose tensors have shapes and no memory.

    Hooks of others are left out: what they are bound to, a trainer or a logger, would be copied along.

    Args:
        model: Adapted or not.
        joins: What is tried on the copy may read adapters that are there, as fusion layers over them do. Without, the
            copy has their names and configs, and no tensors of those that a further adapter does not touch: else it
            would cost the more the more adapters there are.

    Raises:
        CheckpointError: the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    stand_ins: dict[int, Weights] = {}
    for weights in () if joins else others_weights(model):
        known = stand_ins.get(id(weights.config))
        if known is None:
            known = stand_ins[id(weights.config)] = Weights(weights.config)
        memo[id(weights)] = known
    for shared in () if joins else others_shared(model):
        memo[id(shared)] = nn.ModuleDict()
    for tensor in (*model.parameters(), *model.buffers()) if joins else tensors_in(model):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    for tensor in packed_weights(model):  # a transposed one is no parameter itself
        memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta", requires_grad=False))
    modules = model.modules() if joins else parts_of(model)
    tables = [table for module in modules for table in hook_tables(module)]
    memo.update((id(table), OrderedDict()) for table in tables)
    try:
        twin = copy.deepcopy(model, memo)
        for table in tables:
            ours = {key: hook for key, hook in table.items() if isinstance(hook, (Hook, bool))}
            memo[id(table)].update(copy.deepcopy(ours, memo))
    except Exception as error:
        raise CheckpointError(
            "the model cannot be copied, and what is loaded is tried on a copy first",
            where=type(model).__name__,
            got=f"{type(error).__name__}: {error}"[:300],
            allowed="a model that copy.deepcopy copies",
            try_="load before the model is given what cannot be copied",
        ) from error
    return twin


def hook_tables(module: nn.Module) -> Iterator[Any]:
    """Yield the dictionaries in which torch keeps the hooks of a module."""
    for key, value in vars(module).items():
        if key.startswith(("_forward_", "_backward_", "_state_dict_", "_load_state_dict_")) and isinstance(value, dict):
            yield value


@contextlib.contextmanager
def rehearsal(folder: Any) -> Iterator[None]:
    """Build what a folder describes without allocating it, so that nothing it says can cost memory or a user's model.

    Raises:
        CheckpointError: whatever goes wrong inside that is no error of ours already.
    """
    with as_described(folder), torch.device("meta"):
        yield


@contextlib.contextmanager
def as_described(folder: Any) -> Iterator[None]:
    """Let every error inside be one of ours that names the folder.

    Raises:
        CheckpointError: whatever goes wrong inside that is no error of ours already.
    """
    try:
        yield
    except HFAdaptError:
        raise
    except Exception as error:
        # The same code makes every valid folder's model, so what fails here is what the folder says.
        raise CheckpointError(
            "what the folder describes cannot be built",
            where=str(folder),
            got=f"{type(error).__name__}: {error}"[:500],
            allowed="adapters, tasks and names that this release makes of such a config",
            try_="save again; hfadapt_config.json was changed, or belongs to another version",
        ) from error


def _same_memory(tensor: Tensor, data: Tensor) -> bool:
    """Whether a tensor still holds ``data``; it is left alone then, for a copy of the model may be running on it.

    Of kinds that do not tell where they stand (shards, sparse tensors) nobody knows.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
        return False
    form = (tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.data_ptr())
    return form == (data.dtype, data.device, data.shape, data.stride(), data.data_ptr())


@contextlib.contextmanager
def all_or_nothing(model: PreTrainedModel, overwritten: Iterable[Tensor] = ()) -> Iterator[None]:
    """Put ``model`` back as it was if what happens inside fails or is interrupted.

    Args:
        model: A stock model, adapted or not, which gets further adapters inside.
        overwritten: Its tensors whose values may be written inside.
    """
    state = find_attachment(model)
    before = None if state is None else {key: copy.copy(value) for key, value in vars(state).items()}
    # The data as well as the tensor: a head that is trained in place may become float32.
    tensors = [(t, t.data, t.requires_grad) for t in tensors_in(model)]
    values = [(t.data, t.detach().clone()) for t in overwritten]
    tables = [table for module in parts_of(model) for table in hook_tables(module)]
    hooks = {id(table): dict(table) for table in tables if table}  # most are empty, a dozen a module
    try:
        yield
    except BaseException:
        found = find_attachment(model)
        if found is not None and before is None:
            detach(model)
        elif found is not None and before is not None:
            detach(model, [name for name in found.names if name not in before["adapters"]])
        for table in tables:
            table.clear()
            table.update(hooks.get(id(table), {}))
        if found is not None and before is not None:
            _reset(model, found, before)
        with torch.no_grad():
            for tensor, data, trains in tensors:
                if not _same_memory(tensor, data):
                    tensor.data = data
                if tensor.requires_grad != trains:
                    tensor.requires_grad_(trains)
            for data, value in values:
                data.copy_(value)
        raise


# What a further adapter may change in a model's attachment, beside the adapters themselves.
_OF_ALL = (
    "choice",
    "compositions",
    "fusions",
    "rereads_input",
    "call_counters",
    "inside",
    "label_counts",
    "prove",
    "waiting",
)


def _reset(model: PreTrainedModel, state: Attachment, before: dict[str, Any]) -> None:
    """Take back what adapters that are gone again changed for the model as a whole."""
    restore_map(model, state, before["arch"])
    if before["original_attention"] is None:
        restore_attention(model, state)
    restore_chunks(model, state, tuple(before["original_chunk_sizes"]))
    if before["shared"] is None and state.shared is not None:
        state.shared = None
        del model.hfadapt_shared
    for key in _OF_ALL:
        setattr(state, key, before[key])
    state.changed()
    watch(model, state, () if state.watch is None else state.watch.lost_before)
