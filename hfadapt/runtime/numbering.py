"""Ids that a model looks up for every token, its positions above all: changed for some rows before they are looked up.

Positions are handed to the leaf that looks them up, as one row that all share, as a row each, or not at all where the
leaf counts by itself. The hook makes a row each of them, runs the deltas on the numbers, and hands them on.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RoutingError
from ..routing.context import current
from .leaf_hooks import Hook, add_hook
from .slot import run_slot

__all__ = ["NumbersHook", "RowsOfNumbersHook", "change_numbers", "takes_numbers"]

_GIVEN = "position_ids"
#: What a leaf that counts is told of earlier tokens; the older name was used before transformers 5.24.
_CACHED = ("cache_length", "past_key_values_length")


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(type(module).forward).parameters)[1:]


def _flattens(names: Sequence[str]) -> bool:
    """The leaf takes positions for all rows in one list (BART); those that count in a mask take a row each (OPT)."""
    return _GIVEN in names and names[0] == "input_ids"


def takes_numbers(module: nn.Module) -> bool:
    """Say whether a leaf looks up ids that it is given, or counts in a way that is known here."""
    names = _parameters(module)
    return type(module).forward is nn.Embedding.forward or _GIVEN in names


def change_numbers(leaf: nn.Module) -> None:
    """Let deltas change what a leaf looks up."""
    names = _parameters(leaf)
    add_hook(leaf, NumbersHook(tuple(names)))
    if _flattens(names):
        add_hook(leaf, RowsOfNumbersHook())


class NumbersHook(Hook):
    """Runs the deltas on the ids that a leaf is about to look up.

    Args:
        names: Of the leaf's arguments.
    """

    before = by_name = True

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        routing = current()
        if routing is None or not routing.live_steps():
            return None
        names = self.names
        key = _GIVEN if _GIVEN in names else names[0]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        numbers = call.get(key)
        if numbers is None:
            numbers = _counted(call, names)
        if numbers.dim() < 2:
            numbers = numbers.unsqueeze(0)
        routing = routing.for_batch(routing.batch_size if numbers.shape[0] == 1 else numbers.shape[0])
        numbers = numbers.expand(routing.batch_size, -1)
        made = run_slot(module, "numbers", numbers, None, routing)
        if made.dtype != numbers.dtype:
            raise RoutingError(
                "positions of tokens cannot be averaged: each adapter counts its own prefix",
                where=type(module).__name__,
                got="an average of adapters, and positions that are no whole numbers",
                allowed="positions that one adapter a row counts",
                try_="one of the adapters alone; or prefixes with tokens='apart'",
            )
        call[key] = made.flatten() if _flattens(names) else made
        return (), call


class RowsOfNumbersHook(Hook):
    """Gives a table that took the positions of all rows in one list its rows back."""

    by_name = True

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        given, read = kwargs.get(_GIVEN), kwargs.get("input_ids")
        if current() is None or given is None or read is None or given.dim() != 1:
            return None
        return output.view(-1, read.shape[1], output.shape[-1])


def _counted(call: dict[str, Any], names: Sequence[str]) -> Tensor:
    """Return the positions that a leaf counts where it is given none, ``[1 or B, T]``."""
    cached = next((call[name] for name in _CACHED if call.get(name) is not None), 0)
    read = call[names[0]]
    if names[0] == "attention_mask":
        return (read.cumsum(1) * read - 1).long()[:, cached:]
    return (torch.arange(read.shape[1], device=read.device) + cached).unsqueeze(0)
