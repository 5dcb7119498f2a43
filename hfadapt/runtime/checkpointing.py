"""Carries the routing of a call into the re-run of a layer under activation checkpointing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..routing.context import current, use_routing
from ..routing.routing import Routing

__all__ = ["CheckpointWithRouting"]


class CheckpointWithRouting:
    """Stands in for a layer's checkpoint function.

    The re-run happens during backward, when the model's call has put the routing away, and on CUDA in a thread of
    autograd's own; without this the deltas are missing there and gradients are silently wrong.

    The reentrant form of checkpointing knows the tensors that it is called with and no others: what reaches a layer
    past them keeps the graph of the first run, which the first layer's backward would free for all. So prefixes that
    were computed before the layers, and the states that a decoder is given by name, are handed to it as well. And it
    gives no gradient at all where none of its inputs needs one, as over a frozen base.

    Args:
        function: The layer's own.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        routing = current()
        if routing is None or getattr(self.function, "keywords", {}).get("use_reentrant") is False:
            return self.function(_WithRouting(layer, routing), *args, **kwargs)
        named = layer.keywords if isinstance(layer, functools.partial) else {}
        handed = tuple({id(t): t for t in _needing_gradients((routing.state.prepared, named))}.values())
        if torch.is_grad_enabled() and not handed and next(_needing_gradients(args), None) is None:
            args = _first_needs_gradient(args)
        return self.function(_WithRouting(layer, routing, handed), *handed, *args, **kwargs)


class _WithRouting:
    """A layer in the routing of the call that it belongs to.

    Args:
        layer: As transformers hands it on.
        routing: Of the call.
        handed: Tensors that the layer reaches by other ways than its arguments; those that come in front of the
            arguments take their place.
    """

    def __init__(self, layer: Callable[..., Any], routing: Routing | None, handed: tuple[Tensor, ...] = ()) -> None:
        self.layer = layer
        self.routing = routing
        self.handed = handed
        self.calls = dict(routing.state.calls) if routing is not None else {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        count, routing = len(self.handed), self.routing
        if routing is None:
            with use_routing(None):
                return self.layer(*args, **kwargs)
        state = routing.state
        state.calls = dict(self.calls)
        if not count:
            with use_routing(routing):
                return self.layer(*args, **kwargs)
        given = {id(old): new for old, new in zip(self.handed, args[:count], strict=True)}
        layer, before = self.layer, state.prepared
        if isinstance(layer, functools.partial):
            layer = functools.partial(layer.func, *layer.args, **_replaced(layer.keywords, given))
        try:
            state.prepared = _replaced(before, given)
            with use_routing(routing):
                return layer(*args[count:], **kwargs)
        finally:
            state.prepared = before


def _needing_gradients(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in lists, tuples and dicts that need a gradient."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _needing_gradients(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _needing_gradients(one)


def _replaced(value: Any, given: dict[int, Tensor]) -> Any:
    """Return lists, tuples and dicts anew with other tensors in them, by the ids of the old ones."""
    if isinstance(value, Tensor):
        return given.get(id(value), value)
    if type(value) is dict:
        return {key: _replaced(one, given) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_replaced(one, given) for one in value)
    return value


def _first_needs_gradient(args: tuple) -> tuple:
    for place, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_floating_point():
            return (*args[:place], value.detach().requires_grad_(), *args[place + 1 :])
    return args
