"""The sizes that a layer's attention is called with, read where transformers looks its function up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Core:
    """One call of an attention function.

    Attributes:
        module: The module that it was given.
        given: Queries, keys and values: ``[B, heads, T, width]``.
    """

    module: nn.Module
    given: tuple[Tensor, Tensor, Tensor]

    @property
    def heads(self) -> int:
        """Heads of the queries."""
        return self.given[0].shape[1]

    @property
    def kv_heads(self) -> int:
        """Heads of the keys."""
        return self.given[1].shape[1]

    @property
    def head_dim(self) -> int:
        """Width of a key's head."""
        return self.given[1].shape[3]

    @property
    def value_dim(self) -> int:
        """Width of a value's head."""
        return self.given[2].shape[3]


@contextmanager
def watched_attention() -> Iterator[list[Core]]:
    """Note each call of a function of ``AttentionInterface`` while the context is open.

    Attention that a model computes by itself is not seen, and with releases whose layers look their function up in
    another way none is.
    """
    from transformers import AttentionInterface

    seen: list[Core] = []
    stock = getattr(AttentionInterface, "get_interface", None)
    if stock is None:
        yield seen
        return

    def look_up(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        function = stock(*args, **kwargs)

        def noting(module: nn.Module, query: Any, key: Any, value: Any, *more: Any, **options: Any) -> Any:
            if query.dim() == key.dim() == value.dim() == 4:
                seen.append(Core(module, (query, key, value)))
            return function(module, query, key, value, *more, **options)

        return noting

    # In the class: a model may keep a table of its own, with functions of its own beside transformers' (Doge).
    own = vars(AttentionInterface).get("get_interface")
    AttentionInterface.get_interface = look_up
    try:
        yield seen
    finally:
        if own is None:
            del AttentionInterface.get_interface
        else:
            AttentionInterface.get_interface = own
