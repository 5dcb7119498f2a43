"""The sizes that a layer's attention is called with, read where transformers looks its function up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Core:
    """One call of an attention function: the module that it was given, heads, and widths of their keys and values."""

    module: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


@contextmanager
def watched_attention() -> Iterator[list[Core]]:
    """Note each call of a function of ``AttentionInterface`` while the context is open.

    Attention that a model computes by itself is not seen, and with releases whose layers look their function up in
    another way none is.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    seen: list[Core] = []
    stock = getattr(FUNCTIONS, "get_interface", None)
    if stock is None:
        yield seen
        return

    def look_up(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        function = stock(*args, **kwargs)

        def noting(module: nn.Module, query: Any, key: Any, value: Any, *more: Any, **options: Any) -> Any:
            if query.dim() == key.dim() == value.dim() == 4:
                seen.append(Core(module, query.shape[1], key.shape[1], key.shape[3], value.shape[3]))
            return function(module, query, key, value, *more, **options)

        return noting

    FUNCTIONS.__dict__["get_interface"] = look_up
    try:
        yield seen
    finally:
        del FUNCTIONS.__dict__["get_interface"]
