"""Giving adapters copies of their own of modules of the base: heads, and what else is trained whole.

What is copied are the smallest modules below a path that hold its parameters: of a head of two layers the two linears,
not the module around them. Adapters at such a linear go on working, and what lies between runs once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..architecture.modes import evaluating
from ..errors import ArchitectureError, AttachError, did_you_mean
from ..routing.choice import Block, Choice
from ..runtime.attachment import Attachment, attachment, copies_of, device_and_dtype, slots_of
from ..runtime.own_forward import RoutedForward, bare_copy, route, unroute
from ..runtime.slot import Slot, slot_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["add_copies", "drop_copies", "find_modules", "own_modules", "own_tensors", "resize_outputs", "units_of"]


def own_modules(model: PreTrainedModel, owner: str) -> dict[str, nn.Module]:
    """Return an adapter's own modules by the path of what they are copies of: its head, and others trained whole.

    Args:
        model: An adapted model.
        owner: An adapter's name, or the ``key`` of a ``Fuse`` that has layers.

    Raises:
        AttachError: nothing is attached, or there is no adapter of that name.
    """
    state = attachment(model)
    if owner not in [fuse.key for fuse in state.fusions]:
        state.require(owner)
    return dict(copies_of(model, owner))


def own_tensors(model: nn.Module, owner: str) -> Iterator[tuple[str, str, Tensor]]:
    """Yield what of an adapter's own modules is saved: a module's path, a key below it, and the tensor itself."""
    for path, own in copies_of(model, owner):
        seen: set[int] = set()
        for key, tensor in own.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:  # tied ones once
                seen.add(id(tensor))
                yield path, key, tensor


def find_modules(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Return the paths of the modules that ``names`` mean: whole paths, or their last parts.

    Raises:
        AttachError: a name matches no module with parameters.
    """
    paths = [path for path, module in model.named_modules() if path and not _ours(path) and _has_tensors(module)]
    chosen: dict[str, None] = {}
    for name in names:
        found = [name] if name in paths else [path for path in paths if path.endswith(f".{name}")]
        if not found:
            ends = {path.rpartition(".")[2] for path in paths} - {path for path in paths if path.isdigit()}
            raise AttachError(
                "no module of that name to give the adapter a copy of",
                where=type(model).__name__,
                got=repr(name),
                allowed="a path, or its last parts, of a module with parameters",
                try_=did_you_mean(str(name), sorted(ends)),
            )
        chosen.update(dict.fromkeys(found))
    return tuple(path for path in chosen if not any(path.startswith(f"{other}.") for other in chosen))


def units_of(model: nn.Module, path: str) -> Iterator[str]:
    """Yield the paths of the smallest modules at or below ``path`` that hold all of its parameters."""
    module = model.get_submodule(path)
    if _has_own_tensors(module):
        yield path
        return
    for name, child in module.named_children():
        if not isinstance(child, Slot):
            yield from units_of(model, f"{path}.{name}")


def add_copies(
    model: PreTrainedModel,
    state: Attachment,
    owner: str,
    heads: Iterable[str] = (),
    modules: Iterable[str] = (),
) -> None:
    """Give ``owner`` a copy of the modules at the given paths, equal to the base's at the start.

    Args:
        model: The adapted model.
        state: What is attached to it.
        owner: An adapter that is attached already, or the ``key`` of a ``Fuse``.
        heads: Paths of head modules; the last linear of each returns the logits.
        modules: Paths of other modules.

    Raises:
        AttachError: a module cannot be copied.
    """
    heads, modules = tuple(heads), tuple(modules)
    inside = [unit for path in heads for unit in units_of(model, path)]
    others = [unit for path in modules for unit in units_of(model, path)]
    routed = {path: _add(model, state, owner, path) for path in dict.fromkeys((*inside, *others))}
    for path in heads:
        last = [unit for unit in units_of(model, path) if isinstance(model.get_submodule(unit), nn.Linear)][-1:]
        for unit in last:
            routed[unit].pads = True
    if owner in state.adapters:
        had = state.adapters[owner]
        state.adapters[owner] = dataclasses.replace(had, heads=heads, modules=modules)
    fresh = {path: one for path, one in routed.items() if path not in inside and len(slot_of(one.leaf).copies) == 1}
    if fresh:
        _find_rows(model, state, fresh)


def _add(model: PreTrainedModel, state: Attachment, owner: str, path: str) -> RoutedForward:
    leaf = model.get_submodule(path)
    within = [f"{path}.{name}" for name, m in leaf.named_modules() if name != "hfadapt" and isinstance(m, Slot)]
    if within:
        raise AttachError(
            "a module that is to be trained whole has adapters inside",
            where=path,
            got=", ".join(p.removesuffix(".hfadapt") for p in within[:3]),
            allowed="modules in which no adapter sits",
            try_="modules_to_save without it, or target_modules that leave it out",
        )
    made = bare_copy(leaf)
    device, dtype = device_and_dtype(leaf, model, state.autocast_dtype)
    made = made.to(device=device, dtype=dtype).train(leaf.training)
    if not hasattr(leaf, "hfadapt"):
        leaf.add_module("hfadapt", Slot())
    slot_of(leaf).copies[owner] = made
    return route(leaf, path)


def drop_copies(model: nn.Module, owners: Iterable[str]) -> None:
    """Remove the copies of adapters that are gone."""
    gone = set(owners)
    for name in gone:
        attachment(model).label_counts.pop(name, None)
    for path, slot in slots_of(model):
        for name in gone.intersection(slot.copies):
            del slot.copies[name]
        if not slot.copies:
            unroute(model.get_submodule(path))


def resize_outputs(model: nn.Module, owner: str, path: str, shape: Sequence[int]) -> None:
    """Give an adapter's copy of a head's last linear other outputs: labels are a task's, not the base's.

    Args:
        model: An adapted model.
        owner: As of `own_modules`.
        path: Of the linear; unless it returns the logits of a head, nothing is changed.
        shape: That of the weight which the copy is to hold ``[C, D]``; with another D than its own nothing is changed.
    """
    leaf = model.get_submodule(path)
    own = slot_of(leaf).copies[owner]
    if not getattr(leaf.forward, "pads", False) or not isinstance(own, nn.Linear):
        return
    if len(shape) != 2 or shape[1] != own.in_features or shape[0] == own.out_features:
        return
    size = int(shape[0])
    attachment(model).label_counts[owner] = size
    own.out_features = size
    own.weight = nn.Parameter(own.weight.new_zeros(size, own.in_features), own.weight.requires_grad)
    if own.bias is not None:
        own.bias = nn.Parameter(own.bias.new_zeros(size), own.bias.requires_grad)


def _ours(path: str) -> bool:
    return ".hfadapt." in f".{path}." or path.startswith("hfadapt_shared")


def _has_tensors(module: nn.Module) -> bool:
    return any(_has_own_tensors(inner) for inner in module.modules() if not isinstance(inner, Slot))


def _has_own_tensors(module: nn.Module) -> bool:
    saved = (b for name, b in module._buffers.items() if name not in module._non_persistent_buffers_set)
    return any(t is not None for t in (*module._parameters.values(), *saved))


def _find_rows(model: PreTrainedModel, state: Attachment, routed: dict[str, RoutedForward]) -> None:
    """Note whether the first axis of what each module reads is the batch's: run the base with two and three rows."""
    from ..architecture.inputs import first_that_runs

    if any(p.is_meta for p in model.parameters()):
        return
    sizes: dict[str, list[int]] = {path: [] for path in routed}
    handles = [one.leaf.register_forward_pre_hook(_Note(sizes[p]), with_kwargs=True) for p, one in routed.items()]

    def run(inputs: dict[str, Any]) -> None:
        for found in sizes.values():
            found.clear()
        for rows in (2, 3):
            model(**{key: value.repeat(rows, *(1,) * (value.dim() - 1)) for key, value in inputs.items()})

    try:
        with evaluating(model), torch.no_grad(), Block(state, Choice(base=True)):
            first_that_runs(model, 1, run)
    except ArchitectureError:
        for one in routed.values():
            one.by_row = None
        return
    finally:
        for handle in handles:
            handle.remove()
    for path, one in routed.items():
        half = len(sizes[path]) // 2
        pairs = set(zip(sizes[path][:half], sizes[path][half:], strict=False))
        by_row, alike = all(3 * two == 2 * three for two, three in pairs), all(two == three for two, three in pairs)
        one.by_row = True if by_row else False if alike else None


class _Note:
    """Keeps the size of the first axis of what a module reads."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        from ..runtime.leaf_hooks import tensor_batch_size

        found = tensor_batch_size(args, kwargs)
        if found is not None:
            self.sizes.append(found[0])
