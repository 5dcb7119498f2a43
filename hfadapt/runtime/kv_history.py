"""What deltas with attention of their own keep of the tokens that a key-value cache stands for.

A decoder that generates step by step hands only its new tokens to its layers. A delta that attends to earlier ones
keeps its own keys and values of them here, ``[B, T, S]`` a place, beside the cache of the call. They live as long as
that cache, are copied with it, and follow it when its rows are moved or its tokens taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import RoutingError
from .call import counted_tokens, length_of_past

if TYPE_CHECKING:
    from ..method.site import Site
    from ..routing.routing import Routing

__all__ = ["KVHistory", "check_steps", "history_of", "needs_earlier_tokens", "tokens_in"]

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
    """Stands in for a method of one cache that moves or drops what it holds, and does the same to the histories."""

    def __init__(self, cache: Any, name: str) -> None:
        self.cache = cache
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = getattr(type(self.cache), self.name)(self.cache, *args, **kwargs)
        seen: dict[str, Tensor] = getattr(self.cache, _KEY)
        if self.name == "reset":
            seen.clear()
        elif self.name == "crop":
            left = int(self.cache.get_seq_length())
            seen.update({key: tensor[:, :left] for key, tensor in seen.items()})
        else:
            argument = next(iter((*args, *kwargs.values())))
            seen.update({key: _MOVES[self.name](tensor, argument) for key, tensor in seen.items()})
        return result


def tokens_in(cache: Any) -> int | Tensor:
    """Return how many tokens a cache holds: a number, or in a traced graph a tensor where the cache counts in one.

    One of state spaces alone counts none: they are then as many as the histories beside it hold, and -1 says that there
    were some and no histories of them.
    """
    length = counted_tokens(cache) if hasattr(cache, "get_seq_length") else 0
    if length is None:
        seen = [tensor.shape[1] for tensor in getattr(cache, _KEY, {}).values()]
        return max(seen, default=-1 if cache.has_previous_state() else 0)
    if torch.compiler.is_compiling():
        return length.clone() if isinstance(length, Tensor) else length
    return int(length)


@dataclass
class KVHistory:
    """The histories of one place, in one call.

    Args:
        tensors: Those of all places of the cache, by key.
        key: What the keys of this place begin with.
        past: Tokens in the cache; a tensor in a traced graph whose cache counts in one.
        room: Tokens that a cache of fixed size can hold, else 0: histories then have that size as well.
        site: The place, for errors.
    """

    tensors: dict[str, Tensor]
    key: str
    past: int | Tensor
    room: int
    site: Site

    def before(self, name: str, rows: int) -> Tensor | None:
        """Return the history ``name`` ``[B, past or room, S]``, or None when the cache is empty.

        Raises:
            RoutingError: the cache was filled by calls in which this place did not run, or for other rows.
        """
        counted = isinstance(self.past, Tensor)
        if not counted and not self.past:
            return None
        found = self.tensors.get(f"{self.key}:{name}")
        holds = 0 if found is None else found.shape[1]
        if found is None or found.shape[0] != rows or not (counted or holds >= self.past):
            raise RoutingError(
                "the key-value cache was filled by calls in which this delta did not run",
                where=f"{self.site.leaf} ({self.site.slot})",
                got=f"{'some' if counted or self.past < 0 else self.past} cached tokens of {rows} rows, "
                f"{'none' if found is None else f'{holds} of {found.shape[0]} rows'} seen here",
                allowed="a cache that was filled while this very delta ran, for the same rows",
                try_="give the first call the cache, an empty DynamicCache(), and keep adapter and depth; "
                "or use_cache=False",
            )
        return found if self.room else found[:, : self.past]

    def keep(self, name: str, tensor: Tensor) -> None:
        """Put ``tensor`` in the place of the history ``name``."""
        self.tensors[f"{self.key}:{name}"] = tensor.detach()


def needs_earlier_tokens(routing: Routing, site: Site) -> None:
    """Say that the result of a causal place depends on earlier tokens, of which only a cache can tell.

    A decoding step whose cache is not among the call's arguments looks like a short text. What shows it before the
    model's result is there is refused here, and what only the result shows by `check_steps`.

    Raises:
        RoutingError: there is no cache in the call, yet its mask or another argument stands for earlier tokens.
    """
    given = routing.given
    if given.cache is not None or not site.causal or not given.tokens:
        return
    where, tokens = f"{site.leaf} ({site.slot})", given.tokens
    mask = given.mask if given.other_mask is None else given.other_mask
    masked = mask.shape[-1] if isinstance(mask, Tensor) else tokens
    if given.other_past or masked > tokens:
        raise _without_cache(where, given.other_past or f"{tokens} new tokens under a mask of {masked}")
    routing.state.without_cache[where] = tokens


def check_steps(routing: Routing, output: Any) -> None:
    """Raise when a model returns a cache with earlier tokens, and places that must know of them were not shown it.

    Raises:
        RoutingError: it does.
    """
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    where, tokens = next(iter(routing.state.without_cache.items()))
    held = length_of_past(values)
    if held > tokens:
        raise _without_cache(where, f"{tokens} new tokens, and {held} in the cache that the model returns")


def _without_cache(where: str, got: str) -> RoutingError:
    return RoutingError(
        "a method that must know the earlier tokens was not given the key-value cache that stands for them",
        where=where,
        got=got,
        allowed="an instance of transformers' Cache among the model's arguments; or all tokens in every call",
        try_="generate(...), or use_cache=False",
    )


def history_of(routing: Routing, site: Site) -> KVHistory | None:
    """Return the histories of a place, or None in a call without a cache.

    Where several deltas are at one place, or one runs several times, each has histories of its own.

    Raises:
        RoutingError: as of `needs_earlier_tokens`; or the cache forgets tokens.
    """
    needs_earlier_tokens(routing, site)
    cache = routing.cache
    if cache is None or not site.causal:
        return None
    calls, place = routing.state.calls, site.leaf + site.slot
    number = calls[place] = calls.get(place, 0) + 1
    room = _room(cache, site) if getattr(cache, "is_compileable", False) else 0
    return KVHistory(_histories(cache), f"{site.leaf}:{site.slot}:{site.layer}:{number}", routing.cached, room, site)


def _room(cache: Any, site: Site) -> int:
    """Return how many tokens a cache of fixed size holds.

    Raises:
        RoutingError: it forgets tokens, as those of sliding windows do.
    """
    if all(cache.is_sliding):
        raise RoutingError(
            "a delta that attends to all tokens cannot decode with a cache of fixed size that forgets some",
            where=f"{site.leaf} ({site.slot})",
            got=f"{type(cache).__name__} of sliding windows",
            allowed="a cache that keeps every token",
            try_="the default cache, or use_cache=False",
        )
    longest = cache.get_max_length if hasattr(cache, "get_max_length") else cache.get_max_cache_shape
    return int(longest())


def _histories(cache: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] | None = getattr(cache, _KEY, None)
    if found is None:
        found = {}
        setattr(cache, _KEY, found)
        for name in (*_MOVES, "reset", "crop"):
            if hasattr(type(cache), name):
                setattr(cache, name, _Follow(cache, name))
    return found
