"""Choosing which adapters a model uses: activate, compose, AdapterDrop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .composition import Composition, Node, Parallel, steps_of
from .delta import check_adapter_name
from .errors import AttachError, problem
from .growing import install
from .state import attachment

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
        raise AttachError(problem("that name is taken", got=name, allowed="a name that is not in use"))
    steps_of(node)
    state.check(node)
    state.compositions[name] = node
    state.changed()


def activate(model: PreTrainedModel, choice: Node | list[str] | tuple[str, ...] | None) -> None:
    """Choose what calls without ``task_ids`` use.

    Args:
        model: An adapted model.
        choice: An adapter's name, a composition, a list of names (one a row), or None for the base alone.

    Raises:
        AttachError: nothing is attached.
        CompositionError: the composition names adapters that are not attached.
    """
    state = attachment(model)
    state.parallel = None
    if isinstance(choice, Parallel):
        state.check(choice)
        state.parallel = choice
        install(model, state)
    elif isinstance(choice, Composition):
        state.check(choice)
        key = f"_active_{len(state.compositions)}"
        for known, node in state.compositions.items():
            if node == choice:
                key = known
        state.compositions[key] = choice
        state.changed()
        choice = key
    elif isinstance(choice, str) and choice not in state.routable:
        state.require(choice)
    state.active = choice
    state.disabled = choice is None
    state.chosen = True


@contextlib.contextmanager
def active(model: PreTrainedModel, choice: Node | list[str] | tuple[str, ...] | None) -> Iterator[None]:
    """``activate`` inside a ``with`` block; what was active before comes back, also after an exception."""
    state = attachment(model)
    before = (state.active, state.disabled, state.chosen, state.parallel, dict(state.compositions))
    try:
        activate(model, choice)
        yield
    finally:
        state.active, state.disabled, state.chosen, state.parallel, state.compositions = before
        state.changed()


def set_adapter_drop(model: PreTrainedModel, layers: int | Mapping[str, int] | None) -> None:
    """AdapterDrop: run without deltas in the lowest layers (Rücklé et al. 2021).

    Args:
        model: An adapted model.
        layers: How many of the lowest layers, for every stack or by stack (kind or path); None or 0 for none.

    Raises:
        AttachError: the number is negative or larger than the stack, or there is no such stack.
    """
    state = attachment(model)
    stacks = {s.path: s for s in state.arch.stacks}
    kinds = {s.kind: s.path for s in state.arch.stacks}
    wanted = {} if layers is None else dict(layers) if isinstance(layers, Mapping) else {"": layers}
    drop: dict[str, int] = {}
    for stack, n in wanted.items():
        path = kinds.get(stack, stack)
        if path and path not in stacks:
            raise AttachError(problem("no such stack", got=stack, allowed=", ".join([*kinds, *stacks])))
        limit = stacks[path].num_layers if path else max(s.num_layers for s in stacks.values())
        if type(n) is not int or not 0 <= n <= limit:
            raise AttachError(
                problem(
                    "cannot drop that many layers", where=path or state.arch.model_type, got=n, allowed=f"0 to {limit}"
                )
            )
        drop[path] = n
    state.drop = drop
