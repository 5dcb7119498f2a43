"""One layer run again and again with random weights, watched and interfered with.

Nothing of the model changes: the weights are handed to the layer for the call only. Random ones make any two places
of the layer differ in value, so that equal tensors mean the same place in the data flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..linears import is_linear
from .stacks import first_tensor

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Call:
    """What went into and came out of one leaf."""

    path: str
    module: nn.Module
    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Trace:
    """The calls of one run in their order, the layer's input and its output."""

    calls: tuple[Call, ...]
    hidden: Tensor
    output: Tensor

    def __getitem__(self, path: str) -> Call:
        return next(call for call in self.calls if call.path == path)

    def count(self, path: str) -> int:
        """How often a leaf was called."""
        return sum(call.path == path for call in self.calls)


class Replay:
    """A layer with the call that the model made to it.

    Args:
        layer: The layer module.
        args, kwargs: Of the model's own call; the first float tensor in them is the hidden state [B, T, D].
    """

    def __init__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.layer = layer
        self.captured = first_tensor((args, kwargs))
        if self.captured is None or self.captured.dim() != 3:
            raise ValueError("the layer is not called with a hidden state [B, T, D]")
        self.args, self.kwargs = args, kwargs
        self.device = self.captured.device
        self.weights = {
            name: self._random(value) for name, value in (*layer.named_parameters(), *layer.named_buffers())
        }
        self.hidden = torch.randn(self.captured.shape, device=self.device)
        self.base = self.run()

    @property
    def batch(self) -> int:
        """B."""
        return self.hidden.shape[0]

    @property
    def tokens(self) -> int:
        """T."""
        return self.hidden.shape[1]

    def run(
        self, *, hidden: Tensor | None = None, edit: str | None = None, by: Callable[[Tensor], Tensor] | None = None
    ) -> Trace:
        """Call the layer once more, with another hidden state or with one leaf's output changed.

        Args:
            hidden: The layer input [B, T, D]; the usual one when None.
            edit: Path of the leaf whose output is changed.
            by: The change.
        """
        hidden = self.hidden if hidden is None else hidden
        calls: list[Call] = []

        def watch(path: str) -> Callable[..., Tensor | None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                source, result = first_tensor((args, kwargs)), first_tensor(output)
                if source is None or result is None:
                    return None
                changed = by(result) if path == edit and by is not None else None
                # Clones, because some layers add to these tensors in place afterwards.
                calls.append(Call(path, module, source.clone(), (result if changed is None else changed).clone()))
                return (changed, *output[1:]) if isinstance(output, tuple) and changed is not None else changed

            return hook

        handles = [
            module.register_forward_hook(watch(path), with_kwargs=True) for path, module in watched(self.layer).items()
        ]
        try:
            args, kwargs = self._real(self.args, hidden), self._real(self.kwargs, hidden)
            output = functional_call(self.layer, self.weights, args, kwargs)
        finally:
            for handle in handles:
                handle.remove()
        result = first_tensor(output)
        if result is None or result.shape != hidden.shape:
            raise ValueError("the layer does not return a hidden state of its input's shape")
        return Trace(tuple(calls), hidden, result)

    def moved(self, position: int | None) -> Trace:
        """A run whose hidden state differs at one position, or everywhere for None."""
        hidden = self.hidden.clone()
        where = slice(None) if position is None else position
        hidden[:, where] += torch.randn_like(hidden[:, where])
        return self.run(hidden=hidden)

    def rows(self, value: Tensor) -> Tensor | None:
        """A tensor as [B, T', D'], also where the layer flattened it; None where it is not of that form."""
        if value.dim() == 3 and value.shape[0] == self.batch:
            return value
        if value.dim() == 2 and value.shape[0] == self.batch * self.tokens:
            return value.view(self.batch, self.tokens, -1)
        return None

    def positions(self, one: Tensor, other: Tensor) -> set[int]:
        """The token positions at which two tensors differ."""
        first, second = self.rows(one), self.rows(other)
        if first is None or second is None or first.shape != second.shape:
            return set(range(self.tokens))
        gap = (first - second).abs().amax(dim=(0, 2))
        return set((gap > _TOLERANCE * first.abs().max()).nonzero().flatten().tolist())

    def _random(self, value: Tensor) -> Tensor:
        """A weight of generic value and usual size; buffers of numbers that are not weights stay."""
        if not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, device=self.device)
        return noise * value.shape[-1] ** -0.5 if value.dim() >= 2 else value.float() + 0.3 * noise

    def _real(self, value: Any, hidden: Tensor) -> Any:
        """An argument with the hidden state put in, float tensors in float32 and no cache."""
        if value is self.captured:
            return hidden
        if isinstance(value, Tensor):
            return value.float() if value.is_floating_point() else value
        if isinstance(value, tuple):
            return tuple(self._real(item, hidden) for item in value)
        if isinstance(value, list):
            return [self._real(item, hidden) for item in value]
        if isinstance(value, dict):
            return {name: self._real(item, hidden) for name, item in value.items()}
        return None if type(value).__name__.endswith("Cache") else value


def watched(layer: nn.Module) -> dict[str, nn.Module]:
    """The modules of a layer that compute, in one word or in several (a block of experts)."""
    return {path: module for path, module in layer.named_modules() if path}


def is_block(path: str, module: nn.Module) -> bool:
    """Whether a module computes with weights and is neither a linear nor a norm: perhaps a whole feed-forward part."""
    return next(module.parameters(), None) is not None and not is_linear(module) and not is_norm(path, module)


def is_norm(path: str, module: nn.Module) -> bool:
    """Whether a module is a norm, or stands in the place of one."""
    if isinstance(module, nn.Identity):
        return "norm" in path.rsplit(".", 1)[-1].lower()
    return "norm" in type(module).__name__.lower() and not is_linear(module)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors hold the same values, whatever their shape."""
    if one is None or other is None or one.numel() != other.numel():
        return False
    first, second = one.reshape(-1), other.reshape(-1)
    return bool((first - second).abs().max() <= _TOLERANCE * (1 + second.abs().max()))
