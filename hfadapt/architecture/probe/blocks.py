"""Parts of a layer that are known by their input and their output alone, whatever is inside.

Low-rank pairs that make queries, keys and values (MLA), gates on what attention gives, linear attention, state spaces
and gated convolutions have no linear that is a query, key or value by itself; a mixture of experts has none that opens
or closes it. Each reads a hidden state and returns one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from ..linears import is_linear, linear_sizes
from ..maps import AttentionMap
from .replay import Call, Replay, is_block, same


def hidden_blocks(replay: Replay) -> Iterator[Call]:
    """Yield the calls of modules that read and return a hidden state, with weights in them, the outermost first."""
    size = replay.base.hidden.numel()
    width = replay.base.hidden.shape[-1]
    calls = [
        call
        for call in replay.base.calls
        if is_block(call.path, call.module)
        and call.input.numel() == call.output.numel() > 0
        and call.output.shape[-1] == width
        # a part of the streams, where the layer has several; or more, where windows are filled up
        and (size % call.output.numel() == 0 or replay.windows(call.output))
        and replay.base.count(call.path) == 1
    ]
    yield from sorted(calls, key=lambda call: call.path.count("."))


def mixes(replay: Replay, call: Call) -> bool:
    """Whether what a module returns at one position depends on what it reads at others."""
    for position in (0, replay.tokens - 1):
        trace = replay.run(edit=call.path, by=lambda value, at=position: replay.shifted(value, at), side="input")
        if trace.count(call.path) == 1 and replay.positions(trace[call.path].output, call.output) - {position}:
            return True
    return False


def holds_core(replay: Replay, call: Call) -> bool:
    """Whether a module's attention function was seen to be called."""
    inside = {id(module) for module in call.module.modules()}
    return any(id(core.module) in inside for core in replay.cores)


def is_causal(replay: Replay) -> bool:
    """Whether what the layer returns at a position depends on earlier ones only."""
    middle = replay.tokens // 2  # the last ones may be padding that the model adds
    return min(replay.positions(replay.moved(middle).output, replay.base.output), default=0) >= middle


def attentions_of(replay: Replay, call: Call) -> Iterator[AttentionMap]:
    """Yield what a block that mixes tokens may be: an attention of its own, or one without its output projection."""
    found = as_attention(replay, call)
    yield found
    for one in replay.base.calls:
        outside = (
            is_linear(one.module) and not one.path.startswith(f"{call.path}.") and replay.base.count(one.path) == 1
        )
        if outside and same(one.input, call.output) and one.output.numel() == replay.base.hidden.numel():
            yield replace(found, output=one.path, width=linear_sizes(one.module)[0])


def as_attention(replay: Replay, call: Call) -> AttentionMap:
    """A block that mixes tokens as an attention of which only the ends are known."""
    inside = [one for one in replay.base.calls if one.path.startswith(f"{call.path}.") and is_linear(one.module)]
    once = [one for one in inside if replay.base.count(one.path) == 1]
    first = next((one.path for one in once if same(one.input, call.input)), call.path)
    last = next((one for one in reversed(once) if same(one.output, call.output)), None)
    return AttentionMap(
        None,
        None,
        None,
        call.path if last is None else last.path,
        call.path,
        reads=first,
        width=-1 if last is None else linear_sizes(last.module)[0],
    )


def as_feed_forward(replay: Replay, call: Call) -> tuple[tuple[str, ...], str]:
    """A block as a feed-forward part: the linears that open and close it where it holds no others, else itself."""
    inside = [one for one in replay.base.calls if one.path.startswith(f"{call.path}.")]
    linears = [one for one in inside if is_linear(one.module)]
    opening = [one.path for one in linears if same(one.input, call.input)]
    closing = [one.path for one in linears if same(one.output, call.output)]
    weights = [one for one in inside if any(True for _ in one.module.parameters(recurse=False))]
    if opening and closing[-1:] == [linears[-1].path] and weights == linears and len(opening) + 1 == len(linears):
        return tuple(opening), closing[-1]
    return (call.path,), call.path


def block_around(replay: Replay, attention: AttentionMap) -> AttentionMap | None:
    """The module that an attention is, known by its ends; None where no module begins and ends as it does."""
    for call in hidden_blocks(replay):
        found = as_attention(replay, call)
        if found.output == attention.output and f"{attention.first}.".startswith(f"{call.path}."):
            return found
    return None


def linear_pairs(replay: Replay) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield linears that may be a feed-forward part in no module of its own, the last ones first."""
    size = replay.base.hidden.numel()
    calls = [call for call in replay.base.calls if is_linear(call.module) and replay.base.count(call.path) == 1]
    for first, last in reversed(list(itertools.pairwise(calls))):
        if first.input.numel() == last.output.numel() == size and first.output.numel() == last.input.numel():
            yield (first.path,), last.path


def whole_layers(replay: Replay) -> Iterator[AttentionMap]:
    """Yield what a layer may be as one part: from a linear that reads its input to one near its end."""
    size = replay.base.hidden.numel()
    calls = [call for call in replay.base.calls if is_linear(call.module) and replay.base.count(call.path) == 1]
    if len(calls) < 2:
        return
    first = next((call for call in calls if same(call.input, replay.base.hidden)), calls[0])
    for last in reversed(calls):
        if last is not first and last.output.numel() == size:
            width = linear_sizes(last.module)[0]
            yield AttentionMap(None, None, None, last.path, "", reads=first.path, width=width)
