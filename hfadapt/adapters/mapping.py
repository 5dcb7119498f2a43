"""The map that an attach works with: looked up, given, probed, or none where no method needs one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import plugins
from ..architecture import ArchitectureMap, resolve
from ..architecture.resolve import table_map
from ..architecture.structure import structure
from ..errors import ArchitectureError, did_you_mean
from ..routing.choice import Block, Choice

if TYPE_CHECKING:
    from torch import nn

    from ..method.config import MethodConfig
    from ..method.method import Method
    from ..runtime.attachment import Attachment

__all__ = ["find_map"]


def find_map(
    model: nn.Module,
    state: Attachment | None,
    methods: Iterable[tuple[Method, MethodConfig]],
    given: ArchitectureMap | None,
) -> ArchitectureMap:
    """Return the map to attach with: of stacks where a method reads them, else what is at hand without a forward.

    Args:
        model: Adapted already, or not.
        state: What is attached to it.
        methods: What is to be attached.
        given: By the caller.

    Raises:
        ArchitectureError: the model cannot be mapped, or ``given`` does not fit it.
    """
    if given is not None:
        return _checked(model, state, given)
    methods = tuple(methods)
    needed = any(method.needs_map(config) for method, config in methods)
    if state is not None and (state.arch.stacks or not needed):
        return state.arch
    if not needed:
        return table_map(model, plugins.architectures()) or structure(model)
    try:
        if state is None:
            return resolve(model)
        with Block(state, Choice(base=True)):
            return resolve(model)
    except ArchitectureError as error:
        if all(method.by_name for method, _ in methods):
            return structure(model, str(error))
        raise


def _checked(model: nn.Module, state: Attachment | None, given: ArchitectureMap) -> ArchitectureMap:
    """Return a map that a caller made, as one of its own kind.

    Raises:
        ArchitectureError: it is no map, names modules that the model lacks, or the model has another one already.
    """
    if isinstance(given, ArchitectureMap) and given.source == "names":
        return given if state is None else state.arch
    if not isinstance(given, ArchitectureMap) or not given.stacks:
        raise ArchitectureError(
            "arch is no map with stacks",
            where=type(model).__name__,
            got=type(given).__name__,
            allowed="an hfadapt.ArchitectureMap",
            try_="hfadapt.probe(model, inputs={...}), or docs/map-an-architecture.md",
        )
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    missing = [path for path in given.paths() if path not in names]
    missing += [stack.path for stack in given.stacks if stack.path not in names]
    if missing:
        raise ArchitectureError(
            "the map names modules that the model has not",
            where=type(model).__name__,
            got=", ".join(missing[:3]),
            allowed="paths that model.named_modules() has",
            try_=f"{did_you_mean(missing[0], names)} arch.under(prefix) moves a map of an inner model".lstrip(),
        )
    if state is not None and state.arch.stacks and state.arch != given:
        raise ArchitectureError(
            "the model has adapters that were attached with another map",
            where=type(model).__name__,
            got=", ".join(stack.path for stack in given.stacks),
            allowed=", ".join(stack.path for stack in state.arch.stacks),
            try_="detach them first",
        )
    if state is not None and state.arch.stacks:
        return state.arch
    return given if given.source in ("probe", "table") else replace(given, source="given")
