"""What a sub-layer reads and adds: the tensors of one run of a layer that are equal, sums of others, or scaled."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..linears import is_linear
from .replay import Call, Replay, is_block, is_norm, same


@dataclass
class Residual:
    """The style of a layer, its norms by role and the dropout leaves after its outputs."""

    style: str | None = None
    norms: dict[str, str] = field(default_factory=dict)
    dropouts: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ends:
    """A sub-layer by its ends: the leaf that reads its input, and the one whose output is added."""

    first: str
    last: str


def norms_of(replay: Replay) -> list[Call]:
    """The norms of a hidden state."""
    size = replay.base.hidden.numel()
    return [call for call in replay.base.calls if is_norm(call.path, call.module) and call.input.numel() == size]


def read_by(replay: Replay, end: Ends) -> Tensor:
    """What a sub-layer reads, its tokens in the order of the layer's where it reads them in windows."""
    source = replay.base[end.first].input
    found = replay.from_windows(source, source) if replay.windows(source) else None
    return source if found is None else found


def added_by(replay: Replay, found: Residual, part: str, end: Ends, norms: list[Call]) -> Tensor | None:
    """What a sub-layer adds, in the shape of the layer's input, behind the norm and the leaves that `found` then names.

    None where it is of another size.
    """
    base, last = replay.base, end.last
    source = base[end.first].input
    windows = replay.windows(source) and source.shape == base[last].output.shape
    value = replay.from_windows(base[last].output, source) if windows else None
    if value is not None:
        return value
    if base[last].output.numel() != base.hidden.numel():
        return None
    value = base[last].output.reshape(base.hidden.shape)
    norm = norm_of(norms, value)
    if norm is not None:
        found.norms[f"sandwich_{part}"] = norm.path
        value = norm.output.reshape(base.hidden.shape)
    behind = _behind(replay, base[last] if norm is None else norm)
    if behind is not None:
        found.dropouts[part] = behind.path
        value = behind.output.reshape(base.hidden.shape)
    return value


def adds(change: Tensor, added: Tensor) -> bool:
    """Whether a change of the stream is what a sub-layer adds to it, as it is or scaled for each hidden unit."""
    return same(change, added) or same(change, ratio(change, added) * added)


def ratio(one: Tensor, other: Tensor) -> Tensor:
    """The factor of each hidden unit that comes nearest to making ``other`` ``one``."""
    axes = tuple(range(other.dim() - 1))
    squares = other.square().sum(axes)
    return (one * other).sum(axes) / squares.clamp_min(torch.finfo(squares.dtype).tiny)


def reads(stream: Tensor, source: Tensor, norms: list[Call]) -> str | None:
    """The norm through which a sub-layer reads the stream: its path, "" for none, None when it reads something else."""
    for norm in norms:
        if same(norm.input, stream) and same(norm.output, source):
            return norm.path
    return "" if same(stream, source) else None


def norm_of(norms: list[Call], value: Tensor) -> Call | None:
    return next((norm for norm in norms if same(norm.input, value)), None)


def _behind(replay: Replay, call: Call) -> Call | None:
    """The last of the leaves that take an output one by one: dropout, and a scale for each hidden unit (DINOv2).

    Where nothing else explains a layer, a convolution over tokens too (Inkling).

    A leaf that is shared with another place is none.
    """
    found: Call | None = None
    value, hidden = call.output, replay.base.hidden
    for other in replay.base.calls[replay.base.calls.index(call) + 1 :]:
        composed = next(other.module.children(), None) is not None
        if (composed and not replay.mixes_behind) or is_linear(other.module):
            continue
        drops = isinstance(other.module, nn.Dropout)
        if not (drops or is_block(other.path, other.module)) or not same(other.input, value):
            continue
        if other.output.numel() != hidden.numel() or replay.base.count(other.path) != 1:
            continue
        before, after = other.input.reshape(hidden.shape), other.output.reshape(hidden.shape)
        if drops or replay.mixes_behind or same(after, ratio(after, before) * before):
            found, value = other, other.output
    return found


def in_order(added: dict[str, Tensor]) -> list[str]:
    return [part for part in ("attention", "cross", "ffn") if part in added]
