"""What a forward pass knows beside the rows: what its stacks were given, and what its slots hand to one another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .draws import Draws
    from .growth import Growth

__all__ = ["Pass", "StackInputs"]


@dataclass(frozen=True, eq=False)
class StackInputs:
    """What the stack of layers that runs was given beside its rows, as far as deltas depend on it.

    Args:
        mask: The two-dimensional attention mask ``[B, T]``, or None.
        other_mask: An attention mask of another form, as it was given.
        memory_mask: The attention mask of the encoder's states that a decoder reads, as it was given.
        attentions: The caller asked for attention weights.
        cache: The key-value cache of the call, or None.
        cached: How many tokens it holds; a tensor in a traced graph whose cache counts in one.
        other_past: What stands for earlier tokens in the call and is no cache of transformers' kind; "" for nothing.
        tokens: How many tokens there are; 0 where the stack was given something else.
        text: The ids ``[B, T]`` of the tokens that the model was given, or their embeddings ``[B, T, D]``, or None.
    """

    mask: Tensor | None = None
    other_mask: Any = None
    memory_mask: Any = None
    attentions: bool = False
    cache: Any = None
    cached: int | Tensor = 0
    other_past: str = ""
    tokens: int = 0
    text: Tensor | None = None


@dataclass(eq=False)
class Pass:
    """What changes while a forward pass runs; the routings of its stacks share it.

    Args:
        taps: Tensors kept for slots further on in the same layer, by the key of a `Tap`.
        prepared: What is computed once for all layers: by shared modules before the first one, and by deltas.
        calls: How often modules ran that do so several times, by path.
        deferred: Deltas that are left to the norm behind them, by the norm's path.
        penalised: Modules that want a term in the training loss, by path.
        loss_share: How much of that term the loss of this call holds; None where the call has no loss.
        items: What the model was told of the labels of an optimizer step; it notices whether it was asked.
        without_cache: By place that needs earlier tokens, how many new ones it was given while no cache was seen.
        growth: How the batch grows on its way up (``Parallel``); a routing's ids say what it grows to.
        draws: Where what runs for some rows only draws random numbers; None where torch's generator serves all.
        shares: By routed step, the weight of each of its adapters for each row, ``[B, N]``.
        found: Which rows use which adapters, by step and by what a place has: worked out once, however many ask.
    """

    taps: dict[str, Tensor] = field(default_factory=dict)
    prepared: dict[Any, Any] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    deferred: dict[str, Any] = field(default_factory=dict)
    penalised: dict[str, Any] = field(default_factory=dict)
    loss_share: Tensor | float | None = None
    items: Any = None
    without_cache: dict[str, int] = field(default_factory=dict)
    growth: Growth | None = None
    draws: Draws | None = None
    shares: dict[int, Tensor] = field(default_factory=dict)
    found: dict[Any, Any] = field(default_factory=dict)

    def for_other_rows(self) -> Pass:
        """Return the same pass without what it holds of the rows."""
        return replace(self, taps={}, found={})
