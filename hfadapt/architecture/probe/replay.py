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
from .cores import watched_attention
from .stacks import first_tensor

_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
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
        args, kwargs: Of the model's own call; the first float tensor in them is the hidden state: [B, T, D], [T, B, D],
            the tokens of all rows in one list [N, D] or [1, N, D], or of an image [B, height, width, D], or
            [B, D, height, width] where the layer works on the other form.
        rows: B of the model's call.
    """

    def __init__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int = 0) -> None:
        self.layer = layer
        self.captured = first_tensor((args, kwargs))
        if self.captured is None or self.captured.dim() not in (2, 3, 4):
            raise ValueError("the layer is not called with a hidden state of two to four axes")
        shape = self.captured.shape
        self.rows_first = len(shape) > 2 and (not rows or shape[0] == rows)
        self.time_first = len(shape) == 3 and not self.rows_first and shape[1] == rows and shape[0] > 1
        self.args, self.kwargs = args, kwargs
        self.device = self.captured.device
        self.weights = {name: self._random(value) for name, value in layer.named_parameters()} | {
            # Tables (a decay for every pair of positions) say what a layer is; scales are numbers like weights.
            name: self._random(_usual(name, value)) if value.dim() < 2 else value
            for name, value in layer.named_buffers()
        }
        self.hidden = torch.randn(self.captured.shape, device=self.device)
        # The layer is given [B, D, height, width]; here stands [B, height, width, D], as its parts see it.
        self.channels_first = False
        # Leaves that mix tokens may stand behind a sub-layer's output.
        self.mixes_behind = False
        with watched_attention() as self.cores:
            self.base = self.run()
            if len(shape) == 4 and self._reads_channels_last():
                self.channels_first, self.hidden = True, self.hidden.permute(0, 2, 3, 1).contiguous()
                self.cores.clear()
                self.base = self.run()
        self.streams = self._streams()

    def _streams(self) -> str:
        """Where the axis of streams is, "first" or "last", in layers that keep several of them: [B, T, S, D]."""
        shape = self.hidden.shape
        read = [call.input.shape for call in self.base.calls if is_linear(call.module)]
        if len(shape) != 4 or any(one[:3] == shape[:3] for one in read):
            return ""
        return next(
            (w for w, own in (("last", shape[:2]), ("first", shape[1:3])) if any(o[:2] == own for o in read)), ""
        )

    def _reads_channels_last(self) -> bool:
        """Whether a leaf reads the hidden state with its second axis as the last one, as linears and norms need it."""
        turned = self.hidden.permute(0, 2, 3, 1)
        return any(one.input.shape == turned.shape and same(one.input, turned) for one in self.base.calls)

    @property
    def batch(self) -> int:
        """B; 1 where the tokens of all rows stand in one list."""
        return 1 if self.hidden.dim() == 2 else self.hidden.shape[int(self.time_first or self.streams == "first")]

    @property
    def listed(self) -> bool:
        """Tokens beside each other need not be one row's.

        Those of all rows stand in one list, [N, D], or [1, N, D] of several rows; or none sees another, as the captions
        of a batch beside every video do not (X-CLIP).
        """
        one = self.hidden.dim() == 3 and self.hidden.shape[0] == 1 and not self.time_first and not self.rows_first
        return self.hidden.dim() == 2 or one or not self.positions(self.moved(0).output, self.base.output) - {0}

    @property
    def tokens(self) -> int:
        """T."""
        if self.streams:
            return self.hidden.shape[2 if self.streams == "first" else 1]
        return self.hidden[..., 0].numel() // self.batch

    def run(
        self,
        *,
        hidden: Tensor | None = None,
        edit: str | None = None,
        by: Callable[[Tensor], Tensor] | None = None,
        side: str = "output",
    ) -> Trace:
        """Call the layer once more, with another hidden state or with one module's output or input changed.

        Args:
            hidden: The layer input; the usual one when None.
            edit: Path of the module.
            by: The change.
            side: What is changed.
        """
        hidden = self.hidden if hidden is None else hidden
        calls: list[Call] = []

        def watch(path: str) -> Callable[..., Tensor | None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                source, result = first_tensor((args, kwargs)), first_tensor(output)
                if source is None or result is None:
                    return None
                changed = by(result) if path == edit and by is not None and side == "output" else None
                # Clones, because some layers add to these tensors in place afterwards.
                calls.append(Call(path, module, source.clone(), (result if changed is None else changed).clone()))
                return (changed, *output[1:]) if isinstance(output, tuple) and changed is not None else changed

            return hook

        def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            source = first_tensor((args, kwargs))
            assert source is not None
            assert by is not None
            made = by(source)
            return (
                tuple(made if value is source else value for value in args),
                {name: made if value is source else value for name, value in kwargs.items()},
            )

        handles = [
            module.register_forward_hook(watch(path), with_kwargs=True) for path, module in watched(self.layer).items()
        ]
        if edit is not None and side == "input":
            handles.append(self.layer.get_submodule(edit).register_forward_pre_hook(change, with_kwargs=True))
        try:
            given = hidden.permute(0, 3, 1, 2) if self.channels_first else hidden
            args, kwargs = self._real(self.args, given), self._real(self.kwargs, given)
            output = functional_call(self.layer, self.weights, args, kwargs)
        finally:
            for handle in handles:
                handle.remove()
        result = first_tensor(output)
        result = result.permute(0, 2, 3, 1) if self.channels_first and result is not None else result
        if result is None or result.shape != hidden.shape:
            raise ValueError("the layer does not return a hidden state of its input's shape")
        return Trace(tuple(calls), hidden, result)

    def moved(self, position: int | None) -> Trace:
        """A run whose hidden state differs at one position, or everywhere for None."""
        return self.run(hidden=self.shifted(self.hidden, slice(None) if position is None else position))

    def keeps_rows_apart(self) -> bool:
        """Whether the first row of the output is what it was where all other rows of the input are others."""
        if self.batch < 2 or not self.rows_first:
            return True
        others = self.hidden.clone()
        others[1:] = torch.randn_like(others[1:])
        return same(self.run(hidden=others).output[0], self.base.output[0])

    def shifted(self, value: Tensor, where: int | slice) -> Tensor:
        """A copy of a tensor with noise added at some positions of all rows."""
        moved = value.clone(memory_format=torch.contiguous_format)
        rows = self.rows(moved)
        view = moved if rows is None else rows
        view[:, where] += torch.randn_like(view[:, where])
        return moved

    def rows(self, value: Tensor) -> Tensor | None:
        """A view of a tensor as [B, T', D'], also where the layer flattened it; None where it is not of that form."""
        if self.streams and value.shape == self.hidden.shape:
            return value.permute(1, 2, 0, 3) if self.streams == "first" else value
        if self.time_first and value.dim() == 3 and value.shape[1] == self.batch:
            return value.transpose(0, 1)
        if value.dim() == 3 and value.shape[0] == self.batch and not self.time_first:
            return value
        if value.dim() == 2 and value.shape[0] == self.batch * self.tokens and not self.time_first:
            return value.reshape(self.batch, self.tokens, -1)
        if value.dim() == 4 and value.shape[:3] == self.hidden.shape[:3] and not self.streams:
            return value.reshape(self.batch, self.tokens, -1)
        return None

    def windows(self, value: Tensor) -> bool:
        """Whether a tensor holds the hidden state's tokens in windows, each of them a row, and perhaps padding."""
        rows, own = value.shape[0], self.hidden.shape
        wide = value.dim() > 2 and self.rows_first and not self.streams and value.shape[-1] == own[-1]
        more = value.numel() - self.hidden.numel()
        return wide and rows % own[0] == 0 and (more > 0 or (more == 0 and rows > own[0]))

    def from_windows(self, value: Tensor, source: Tensor) -> Tensor | None:
        """A tensor in windows with its tokens in the order of the hidden state; None where that is not seen.

        Args:
            value: What was made of `source`, window by window.
            source: In windows too: what a module of the layer returned, or the hidden state, in another order.
        """
        width = source.shape[-1]
        tokens = source.reshape(-1, width)
        for one in (self.base.hidden, *(call.output for call in self.base.calls)):
            if one.shape != self.hidden.shape:
                continue
            other = one.reshape(-1, width)
            known, order = tokens[:, 0].sort()
            after = torch.searchsorted(known, other[:, 0].contiguous()).clamp(1, len(known) - 1)
            nearer = (known[after] - other[:, 0]).abs() < (known[after - 1] - other[:, 0]).abs()
            places = order[torch.where(nearer, after, after - 1)]
            if same(other, tokens[places]):
                return value.reshape(-1, width)[places].reshape(self.hidden.shape)
        return None

    def positions(self, one: Tensor, other: Tensor) -> set[int]:
        """The token positions at which two tensors differ."""
        first, second = self.rows(one), self.rows(other)
        if first is None or second is None or first.shape != second.shape:
            return set(range(self.tokens))
        gap = (first - second).abs().transpose(0, 1).flatten(1).amax(1)
        return set((gap > _TOLERANCE * first.abs().max()).nonzero().flatten().tolist())

    def _random(self, value: Tensor) -> Tensor:
        """A weight of generic value and usual size; buffers of numbers that are not weights stay."""
        if not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, device=self.device)
        return noise * value.shape[-1] ** -0.5 if value.dim() >= 2 else value.float() + 0.3 * noise.clamp(-3, 3)

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


def _usual(name: str, buffer: Tensor) -> Tensor:
    """A buffer, or what a batch norm has before training.

    A trained one's statistics are of what its own weights make, not random ones; and noise makes small variances
    negative, so that no number passes.
    """
    usual = {"running_mean": torch.zeros_like, "running_var": torch.ones_like}.get(name.rpartition(".")[2])
    return buffer if usual is None else usual(buffer)
