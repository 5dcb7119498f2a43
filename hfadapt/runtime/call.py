"""What a module of a stock model was called with.

A key-value cache is found by its type, for transformers renames the argument that holds it (``past_key_values`` became
``cache`` in 5.24). What has no type of its own is found by name, also where it was given by position. The names that
hfadapt depends on are listed in docs/decisions.md, each with the test that fails when it moves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache

__all__ = ["Call", "cache_in", "counted_tokens", "length_of_past", "parameters_of"]

# Arguments that stand for earlier tokens, in any model and release. Looked at only where no `Cache` was found: no delta
# can keep its own keys and values beside whatever else they hold.
_PASTS = (
    "cache",
    "past_key_values",
    "past_key_value",
    "layer_past",
    "cache_params",
    "mems",
    "state",
    "past_buckets_states",
)


def parameters_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of what may be given to a bound ``forward`` by position, in order."""
    parameters = inspect.signature(forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def cache_in(*values: Any) -> Cache | None:
    """Return the first key-value cache among ``values``, or None."""
    for value in values:
        if isinstance(value, Cache):  # an EncoderDecoderCache is one
            return value
    return None


def length_of_past(values: Iterable[Any]) -> int:
    """Return how many tokens the cache among a model's outputs holds, also one of another library's kind; else 0."""
    for value in values:
        if hasattr(value, "get_seq_length"):
            return int(counted_tokens(value) or 0)
    return 0


def counted_tokens(cache: Any) -> Any:
    """Return how many tokens a cache says it holds; None where it counts none, as one of state spaces alone."""
    try:
        return cache.get_seq_length()
    except ValueError:
        return None


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Args:
        args: What was given by position.
        kwargs: What was given by name.
        parameters: The names of the module's ``forward``, from `parameters_of`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parameters: tuple[str, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument ``name``, or ``default`` where the call has none."""
        if name in self.kwargs:
            return self.kwargs[name]
        place = self.parameters.index(name) if self.args and name in self.parameters else len(self.args)
        return self.args[place] if place < len(self.args) else default

    def replacing(self, name: str, value: Any) -> Call:
        """Return the call with another value of an argument that it has."""
        if name in self.kwargs:
            return Call(self.args, {**self.kwargs, name: value}, self.parameters)
        place = self.parameters.index(name)
        return Call((*self.args[:place], value, *self.args[place + 1 :]), self.kwargs, self.parameters)

    @property
    def cache(self) -> Cache | None:
        """The key-value cache that was handed along, whatever the name of its argument."""
        return cache_in(*self.args, *self.kwargs.values())

    @property
    def tokens(self) -> int:
        """How many tokens a stack of layers is given; 0 where its input is something else."""
        for name in ("input_ids", "inputs_embeds"):
            value = self.get(name)
            if value is not None and value.dim() > 1:
                return value.shape[1]
        return 0

    @property
    def other_past(self) -> str:
        """The argument that stands for earlier tokens and is no ``Cache``, with its type; "" for none."""
        for name, value in (*zip(self.parameters, self.args, strict=False), *self.kwargs.items()):
            if value is None or (isinstance(value, (bool, Tensor)) and name not in _PASTS):
                continue
            if name in _PASTS or hasattr(value, "get_seq_length"):
                return f"{name} ({type(value).__name__})"
        return ""
