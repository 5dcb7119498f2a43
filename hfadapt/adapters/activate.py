"""Choosing which adapters a model uses: activate, compose, AdapterDrop."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import AttachError, CompositionError
from ..errors.names import free_name
from ..method.delta import check_adapter_name
from ..routing.choice import Block, Choice, choose
from ..routing.composition import Composition, Node, Parallel, arrow_nodes, steps_of
from ..routing.steps import plan
from ..routing.task_ids import BASE, parse
from ..runtime.attachment import attachment, deltas_of, uncompiled
from ..runtime.parallel_hooks import install

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["activate", "active", "compose", "set_adapter_drop"]


def compose(model: PreTrainedModel, name: str, node: Composition) -> None:
    """Give a composition a name that ``task_ids`` may use, after the adapters' own.

    Raises:
        CompositionError: it names adapters that are not attached, or cannot be chosen per row.
        AttachError: the name is taken.
    """
    state = attachment(model)
    check_adapter_name(name)
    if name in state.routable:
        raise AttachError(
            "that name is taken",
            where=type(model).__name__,
            got=name,
            allowed=f"a name beside {', '.join(state.routable)}",
            try_=repr(free_name(name, state.routable)),
        )
    replace_composition(model, name, node)


def replace_composition(model: PreTrainedModel, name: str, node: Composition) -> None:
    """Let a name stand for another composition than before, under the same number.

    Raises:
        CompositionError: as of ``compose``.
    """
    state = attachment(model)
    steps_of(node)
    state.check(node)
    _check_arrows(model, node)
    state.compositions[name] = node
    state.changed()


def compose_as(model: PreTrainedModel, stem: str, node: Composition, taken: Collection[str]) -> str:
    """Name a composition ``stem_0``, or the next number whose name is free, and return the name.

    A composition that has the name and is not in ``taken`` makes room.

    Raises:
        CompositionError: as of ``compose``.
    """
    state, number = attachment(model), 0
    while (name := f"{stem}_{number}") in taken or name in state.adapters:
        number += 1
    (replace_composition if name in state.compositions else compose)(model, name, node)
    return name


def activate(model: PreTrainedModel, choice: Node | list[str | None] | tuple[str | None, ...] | None) -> None:
    """Choose what calls without ``task_ids`` use, in every thread.

    Inside ``active`` it is the block's choice that changes, for this thread and until the block ends.

    Args:
        model: An adapted model.
        choice: An adapter's name, a composition, a list of names (one a row, None for the base alone), or None for the
            base alone.

    Raises:
        AttachError: nothing is attached, or there is no adapter of that name.
        RoutingError: a list names something else.
        CompositionError: the composition names adapters that are not attached.
    """
    choose(attachment(model), _choice(model, choice))


@contextlib.contextmanager
def active(model: PreTrainedModel, choice: Node | list[str | None] | tuple[str | None, ...] | None) -> Iterator[None]:
    """``activate`` inside a ``with`` block, for the thread that runs it.

    Other threads keep what they chose, or what ``activate`` chose for all. What was active before comes back, also
    after an exception; what ``compose`` named in the block stays.

    Raises:
        AttachError: as of ``activate``.
        RoutingError: as of ``activate``.
        CompositionError: as of ``activate``.
    """
    with Block(attachment(model), _choice(model, choice)):
        yield


def _choice(model: PreTrainedModel, choice: Any) -> Choice:
    state = attachment(model)
    if choice is None or (isinstance(choice, str) and choice == BASE):
        return Choice(base=True, made=True)
    if isinstance(choice, Composition):
        state.check(choice)
        _check_arrows(model, choice)
    if isinstance(choice, Parallel):
        return Choice(node=choice, reaches=install(uncompiled(model), state, choice), made=True)
    if isinstance(choice, Composition):
        return Choice(node=choice, steps=plan([choice]), made=True)
    if isinstance(choice, str) and choice not in state.routable:
        state.require(choice)
    parse(choice, state.routable, None, None)
    return Choice(choice, made=True)


def _check_arrows(model: PreTrainedModel, node: Node) -> None:
    """Raise unless every adapter of every ``Arrow`` in ``node`` has prototypes.

    Raises:
        CompositionError: a delta has none, or an adapter has no delta at all.
    """
    for arrow in arrow_nodes(node):
        for name in map(str, arrow.children):
            found = [
                (path.partition(".hfadapt.")[0], delta.cannot_route(name)) for path, delta in deltas_of(model, name)
            ]
            refused = next(((path, why) for path, why in found if why), None)
            if refused is not None or not found:
                path, why = refused or (name, "it has own modules alone")
                kinds = " + ".join(dict.fromkeys(config.method for config in attachment(model).require(name).configs))
                raise CompositionError(
                    f"tokens cannot be routed to adapter {name!r}",
                    where=f"Arrow, {path.partition('.hfadapt.')[0]}",
                    got=f"{kinds}: {why}" if kinds else why,
                    allowed="LoRAs of linears, without gate and without DoRA",
                    try_="hfadapt.Average of the adapters",
                )


def set_adapter_drop(model: PreTrainedModel, layers: int | Mapping[str, int] | None) -> None:
    """AdapterDrop: run without deltas in the lowest layers (Rücklé et al. 2021).

    Args:
        model: An adapted model.
        layers: How many of the lowest layers, for every stack or by stack (kind or path); None or 0 for none.

    Raises:
        AttachError: the number is negative or larger than the stack, or there is no such stack.
    """
    state = attachment(model)
    depths = state.arch.depths
    kinds = {s.kind: s.path for s in state.arch.stacks}
    wanted = {} if layers is None else dict(layers) if isinstance(layers, Mapping) else {"": layers}
    drop: dict[str, int] = {}
    for stack, n in wanted.items():
        path = kinds.get(stack, stack)
        if path and path not in depths:
            raise AttachError(
                "no such stack",
                where="set_adapter_drop",
                got=stack,
                allowed=", ".join([*kinds, *depths]),
                try_="a number alone, for every stack",
            )
        limit = depths[path] if path else max(depths.values(), default=0)
        if type(n) is not int or not 0 <= n <= limit:
            raise AttachError(
                "cannot drop that many layers",
                where=path or state.arch.model_type,
                got=n,
                allowed=f"0 to {limit}",
                try_=f"0 for none, {limit} for all",
            )
        drop[path] = n
    state.drop = drop
