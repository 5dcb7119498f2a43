"""Sub-layers explained one by one, where the layer as a whole is more than they are.

A layer may hold parts that no slot is for: a second feed-forward part (conformers), embeddings for each layer
(Gemma 4), a factor on its output, a shared expert beside the routed ones, a state space beside attention (Falcon-H1). A
sub-layer is still known where what it adds is seen to be the difference between two tensors that run through the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .replay import Call, Replay, is_block, is_norm, same
from .sums import Ends, Residual, added_by, norm_of, norms_of, ratio, read_by

_LEAST = 1e-3
# Positions with which two factors of a unit are told from chance.
_FEWEST = 6


def explained_apart(replay: Replay, ends: dict[str, Ends]) -> Residual:
    """The style and the norms of sub-layers that are each added to something; no style where one is not."""
    return next((found for how in (_post, _pre) if (found := _all(replay, ends, how)).style), Residual())


def _all(replay: Replay, ends: dict[str, Ends], how: Callable[..., bool]) -> Residual:
    """All sub-layers explained in one way."""
    found, norms = Residual(), norms_of(replay)
    for part, end in ends.items():
        source = read_by(replay, end)
        value = added_by(replay, found, part, end, norms)
        if value is None:
            if how is _post or not _narrow(replay, end):
                return Residual()
            _pre_norm(replay, found, part, source)
        elif source.numel() != value.numel() or not how(replay, found, part, source.reshape(value.shape), value, end):
            return Residual()
    if how is _post:
        last = found.norms[f"post_{list(ends)[-1]}"]
        found.style = "post" if same(replay.base[last].output, replay.base.output) else None
    else:
        found.style = "sandwich" if any(role.startswith("sandwich") for role in found.norms) else "pre"
    return found


def _post(replay: Replay, found: Residual, part: str, source: Tensor, value: Tensor, end: Ends) -> bool:
    """Whether a norm reads the sum of what a sub-layer reads and returns; it is noted."""
    closing = norm_of(norms_of(replay), source + value)
    if closing is not None:
        found.norms[f"post_{part}"] = closing.path
    return closing is not None


def _pre(replay: Replay, found: Residual, part: str, source: Tensor, value: Tensor, end: Ends) -> bool:
    """Whether what a sub-layer returns is added to what its norm reads, or to what it reads itself; they are noted."""
    norms = norms_of(replay)
    tensors = list(_streams(replay))
    before = next((norm for norm in norms if same(norm.output, source)), None)
    starts = [source] if before is None else [before.input.reshape(value.shape), source]
    if replay.mixes_behind:  # what is read may be made of several layers' outputs (Inkling 2)
        starts.append(replay.base.hidden.reshape(value.shape))
    # A sum is neither of its parts.
    pairs = [(stream, start) for start in starts for stream in tensors if not same(stream, value)]
    changes = [stream - start for stream, start in pairs]
    beside = [other for other in _others(replay, end) if not any(same(other, start) for start in starts)]
    for added, over in _sums(found, part, value, beside, norms):
        if any(_grows(change, added) for change in changes) or any(_blends(*pair, added) for pair in pairs):
            found.norms |= {f"sandwich_{part}": over} if over else {}
            break
    else:
        if not any(_grows_by_both(change, value, other) for other in beside for change in changes):
            return False
    found.norms |= {f"pre_{part}": before.path} if before is not None else {}
    return True


def _sums(
    found: Residual, part: str, value: Tensor, beside: list[Tensor], norms: list[Call]
) -> Iterator[tuple[Tensor, str]]:
    """Yield what may be added: a sub-layer's output, and a norm of its sum with what stands beside it."""
    yield value, ""
    for other in beside:
        over = norm_of(norms, value + other)
        if over is not None:
            # What stands between the sub-layer and that sum is no norm of the sum.
            yield over.output.reshape(value.shape), "" if f"sandwich_{part}" in found.norms else over.path


def _streams(replay: Replay) -> Iterator[Tensor]:
    """Yield the tensors that are the layer's output, or that a module in it reads, of a hidden state's size."""
    base = replay.base
    yield base.output
    for call in base.calls:
        if call.input.numel() == base.hidden.numel():
            yield call.input.reshape(base.hidden.shape)


def _others(replay: Replay, end: Ends) -> Iterator[Tensor]:
    """Yield what other blocks and norms of the layer return, of a hidden state's size."""
    base = replay.base
    for call in base.calls:
        inside = f"{end.last}.".startswith(f"{call.path}.") or f"{call.path}.".startswith(f"{end.last}.")
        if inside or call.output.numel() != base.hidden.numel():
            continue
        if is_block(call.path, call.module) or is_norm(call.path, call.module):
            yield call.output.reshape(base.hidden.shape)


def _grows(change: Tensor, added: Tensor) -> bool:
    """Whether a change is what is added, as it is or scaled for each hidden unit, and not nothing."""
    factor = ratio(change, added)
    return bool(factor.abs().max() > _LEAST) and same(change, factor * added)


def _blends(stream: Tensor, start: Tensor, added: Tensor) -> bool:
    """Whether each unit of a tensor is a sum of that of two others, with factors and a bias of its own (Doge, Zaya)."""
    if stream.shape != start.shape:
        return False
    one, two, both = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (start, added, stream))
    one, two, both = one - one.mean(0), two - two.mean(0), both - both.mean(0)
    if len(both) < _FEWEST:
        return False
    a, b, c = (one * one).sum(0), (one * two).sum(0), (two * two).sum(0)
    d, e = (one * both).sum(0), (two * both).sum(0)
    room = (a * c - b * b).clamp_min(torch.finfo(a.dtype).tiny)
    kept, factor = (d * c - e * b) / room, (a * e - b * d) / room
    return bool(min(kept.abs().max(), factor.abs().max()) > _LEAST) and same(both, kept * one + factor * two)


def _grows_by_both(change: Tensor, added: Tensor, other: Tensor) -> bool:
    """Whether a change is a sum of two outputs, each with a factor of its own."""
    columns = torch.stack([added.reshape(-1), other.reshape(-1)], 1)
    products = columns.T @ columns
    if torch.linalg.det(products).abs() <= _LEAST * products.diagonal().prod():  # the same tensor twice
        return False
    factors = torch.linalg.solve(products, columns.T @ change.reshape(-1))
    return bool(factors.abs().min() > _LEAST) and same(change, (columns @ factors).reshape(change.shape))


def _narrow(replay: Replay, end: Ends) -> bool:
    """Whether the layer keeps several streams, of which a sub-layer reads and returns the size of one."""
    hidden, output = replay.base.hidden, replay.base[end.last].output
    return hidden.numel() > output.numel() and hidden.numel() % output.numel() == 0 and hidden.dim() == 4


def _pre_norm(replay: Replay, found: Residual, part: str, source: Tensor) -> None:
    """Note the norm that a sub-layer of such a layer reads."""
    for call in replay.base.calls:
        if is_norm(call.path, call.module) and same(call.output, source):
            found.norms[f"pre_{part}"] = call.path
            return
