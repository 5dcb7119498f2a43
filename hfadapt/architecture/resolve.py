"""From a model to its map: the registry first, the probe for what it does not know."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import ArchitectureError
from .interface import through_interface
from .maps import ArchitectureMap, StackMap, join
from .replaced import WITHOUT, replaced

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)


def resolve(model: nn.Module) -> ArchitectureMap:
    """Find the map of `model`, with paths that work on `model` itself.

    A registered family is looked up by ``config.model_type``; a model made of registered models (an
    encoder-decoder pair, a wrapper with heads) gets the sum of their maps; anything else is probed.

    Raises:
        ArchitectureError: The structure could not be told; the message lists what was found and what is missing.
    """
    from .. import plugins

    found = table_map(model, plugins.architectures())
    if found is not None:
        return found
    from .probe import probe

    try:
        return probe(model)
    except ArchitectureError as error:
        if not (others := replaced(model)):
            raise
        raise ArchitectureError(
            error.what,
            where=error.where,
            got=f"{others}; {error.got}",
            allowed=error.allowed,
            try_=f"{WITHOUT}; or {error.try_}",
        ) from error


def table_map(
    model: nn.Module, table: Mapping[str, Callable[[PretrainedConfig], ArchitectureMap | Sequence[ArchitectureMap]]]
) -> ArchitectureMap | None:
    """The registered map of `model` or of the models it is made of; None where one is missing or does not fit."""
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if config is not None and model_type in table:
        registered = table[str(model_type)](config)
        for arch in (registered,) if isinstance(registered, ArchitectureMap) else registered:
            placed = place(arch, names, _base_prefix(model))
            if placed is not None:
                through, own = through_interface(model, placed.stacks)
                return replace(placed, attention_interface=through, own_attention=own)
        logger.warning("the registered map of %r does not fit this %s", model_type, type(model).__name__)
        return None
    parts = [(prefix, table_map(part, table)) for prefix, part in _inner_models(model)]
    if not parts or any(arch is None for _, arch in parts):
        return None
    maps = [arch.under(prefix) for prefix, arch in parts if arch is not None]
    return ArchitectureMap(
        model_type or maps[0].model_type,
        tuple(stack for arch in maps for stack in arch.stacks),
        attention_interface=any(arch.attention_interface for arch in maps),
        own_attention={path: name for arch in maps for path, name in arch.own_attention.items()},
        pooler=maps[0].pooler if len(maps) == 1 else None,
        rereads_input=any(arch.rereads_input for arch in maps),
    )


def place(arch: ArchitectureMap, names: Collection[str], base: str) -> ArchitectureMap | None:
    """The map with the prefix under which its stacks stand in a model of these module names.

    Stacks that the model lacks (an encoder-only T5) are left out. None where no stack is there, or where a path of
    a stack that is there is missing.
    """
    prefixes = {
        name[: len(name) - len(stack.path)].rstrip(".")
        for stack in arch.stacks
        for name in names
        if name == stack.path or name.endswith("." + stack.path)
    }
    if base not in prefixes and len(prefixes) != 1:
        return None
    prefix = base if base in prefixes else prefixes.pop()
    stacks = tuple(_as_built(stack.under(prefix), names) for stack in arch.stacks if join(prefix, stack.path) in names)
    pooler = join(prefix, arch.pooler) if arch.pooler else None
    placed = replace(arch, stacks=stacks, pooler=pooler if pooler in names else None)
    return placed if set(placed.paths()) <= set(names) else None


def _as_built(stack: StackMap, names: Collection[str]) -> StackMap:
    """The stack with as many layers as the model has, which need not be what its config says."""
    if stack.calls_per_module > 1:
        return stack
    built = {name for name in names if name.startswith(stack.path + ".") and name[len(stack.path) + 1 :].isdigit()}
    if not built or built == set(stack.layer_paths):
        return stack
    return replace(stack, layer_paths=tuple(f"{stack.path}.{index}" for index in range(len(built))))


def _base_prefix(model: nn.Module) -> str:
    """Where `model.base_model` stands in `model`; "" where it is the model itself."""
    base = getattr(model, "base_model", model)
    return next((name for name, module in model.named_modules() if module is base), "")


def _inner_models(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost transformers models inside `model`, with their names."""
    from transformers import PreTrainedModel

    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and not any(name.startswith(f"{at}.") for at, _ in found):
            found.append((name, module))
    return found
