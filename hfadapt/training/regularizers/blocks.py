"""Parts of a model that regularizers name: its first layer, and the linears that give its answers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...architecture import resolve
from ...errors import ConfigError
from ...runtime.attachment import adapted_model

__all__ = ["first_block", "output_linears"]


def first_block(module: nn.Module) -> nn.Module:
    """Return the first transformer layer that words go through; an encoder-decoder's encoder comes first.

    Raises:
        ArchitectureError: the model's structure is not known.
    """
    stock: Any = adapted_model(module)
    arch = resolve(stock)
    stacks = sorted(arch.stacks, key=lambda one: one.kind == "decoder")
    return stock.get_submodule(arch.layer(stacks[0], 0).path)


def output_linears(module: nn.Module) -> list[nn.Linear]:
    """Return the linears that give the answers: the last one of each head of a ``MultiTaskModel`` or stock model.

    Raises:
        ConfigError: the model has no head of its own (its answers come from the word embeddings, or it has none).
    """
    heads: Any = getattr(module, "heads", None)
    if isinstance(heads, nn.ModuleDict) and len(heads):
        found = [_last(head) for head in heads.values()]
    else:
        stock: Any = adapted_model(module)
        inner = getattr(stock, "base_model", stock)
        within = {id(one) for one in inner.modules()} if inner is not stock else set()
        words = stock.get_output_embeddings() if hasattr(stock, "get_output_embeddings") else None
        outside = (
            [] if inner is stock or words is not None else [one for one in stock.children() if id(one) not in within]
        )
        found = [_last(head) for head in outside][-1:]
    # a linear that adapters share holds the copy that each of them trains
    linears = [one for head in found if head is not None for one in head.modules() if isinstance(one, nn.Linear)]
    if not linears:
        raise ConfigError(
            "no linear that gives the answers, so nothing to bound",
            where=type(module).__name__,
            got=f"modules {', '.join([name for name, _ in module.named_children()][:6]) or 'none'}",
            allowed="models with a head for classes, numbers, labels or spans",
            try_="r3f, which leaves the head alone",
        )
    return linears


def _last(head: nn.Module) -> nn.Linear | None:
    """Return the last linear of a head that is no part of another."""
    linears = [(name, one) for name, one in head.named_modules() if isinstance(one, nn.Linear)]
    outer = [one for name, one in linears if not any(name != other and _is_in(name, other) for other, _ in linears)]
    return outer[-1] if outer else None


def _is_in(name: str, other: str) -> bool:
    return not other or name.startswith(f"{other}.")
