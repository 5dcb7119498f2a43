"""What deltas with attention of their own read of the tokens that a key-value cache stands for.

A decoder that generates step by step hands only its new tokens to its layers. A delta that attends to earlier ones
keeps what it read of them here, one tensor ``[B, T, D]`` a place, beside the cache of the call. The tensors live as
long as that cache, are copied with it, and follow it when beams are reordered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import RoutingError, problem

if TYPE_CHECKING:
    from .routing import Routing
    from .slots import Site

__all__ = ["extend"]

_KEY = "_hfadapt_histories"


def _select(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows.to(tensor.device))


# Methods of transformers' caches that move rows, and what they do to ours.
_MOVES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "reorder_cache": _select,
    "batch_select_indices": lambda tensor, rows: tensor[rows],
    "batch_repeat_interleave": lambda tensor, times: tensor.repeat_interleave(times, 0),
}


class _Follow:
    """Stands in for a method of one cache that moves rows, and moves the rows of the histories along."""

    def __init__(self, cache: Any, name: str) -> None:
        self.cache = cache
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = getattr(type(self.cache), self.name)(self.cache, *args, **kwargs)
        argument = next(iter((*args, *kwargs.values())))
        seen = self.cache.__dict__[_KEY]
        for key, tensor in seen.items():
            seen[key] = _MOVES[self.name](tensor, argument)
        return result


def extend(routing: Routing, site: Site, source: Tensor) -> tuple[Tensor, int]:
    """Put what this place read of earlier tokens in front of ``source``, and remember both.

    Args:
        routing: Of the forward pass.
        site: The place; where several deltas are at one, or one runs several times, each has a history of its own.
        source: ``[B, T, D]``, what the place reads of the new tokens.

    Returns:
        ``[B, C + T, D]`` and C, the number of tokens in the cache; ``source`` and 0 without a cache.

    Raises:
        RoutingError: the cache was filled by calls in which this place did not run, or the call is being compiled.
    """
    if routing.cache is None or not site.causal:
        return source, 0
    if torch.compiler.is_compiling():
        raise _refuse("a compiled graph cannot keep what it has read", site, "torch.compile", "compile without a cache")
    number = routing.calls[site.leaf + site.slot] = routing.calls.get(site.leaf + site.slot, 0) + 1
    key = f"{site.leaf}:{site.slot}:{site.layer}:{number}"
    seen = _histories(routing.cache)
    past = routing.cached
    before = seen.get(key)
    if past:
        if before is None or before.shape[1] < past or before.shape[0] != source.shape[0]:
            raise _refuse(
                "the key-value cache was filled by calls in which this delta did not run",
                site,
                f"{past} cached tokens of {source.shape[0]} rows, "
                f"{'none' if before is None else f'{before.shape[1]} of {before.shape[0]} rows'} seen here",
                "give the first call the cache, past_key_values=DynamicCache(), and keep adapter and depth; or "
                "use_cache=False",
            )
        source = torch.cat([before[:, :past].to(source.dtype), source], 1)
    seen[key] = source.detach()
    return source, past


def _histories(cache: Any) -> dict[str, Tensor]:
    if _KEY not in cache.__dict__:
        cache.__dict__[_KEY] = {}
        for name in _MOVES:
            if hasattr(type(cache), name):
                cache.__dict__[name] = _Follow(cache, name)
    return cache.__dict__[_KEY]


def _refuse(what: str, site: Site, got: str, try_: str) -> RoutingError:
    return RoutingError(problem(what, where=f"{site.leaf} ({site.slot})", got=got, try_=try_))
