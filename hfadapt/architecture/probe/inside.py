"""Which linears inside a block make the queries, keys and values that its attention function is given.

Where queries come of low-rank pairs (MLA), or norms stand behind the values or before the output (Gemma 4, BitNet), no
linear is told by what the heads do. What reaches the function's queries and neither its keys nor its values is still
seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..linears import is_linear, linear_sizes
from ..maps import AttentionMap
from .cores import watched_attention
from .replay import Call, Replay, same

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .cores import Core

ROLES = ("query", "key", "value")


def with_inside(layer: nn.Module, replay: Replay, attention: AttentionMap) -> AttentionMap:
    """The map of a block with the module that calls its attention function, and the linears that make what it is given.

    As it is where there is no such function, or where several modules call one.
    """
    around = layer.get_submodule(attention.module)
    paths = {id(module): path for path, module in around.named_modules(prefix=attention.module)}
    cores = [core for core in replay.cores if id(core.module) in paths]
    if len({id(core.module) for core in cores}) != 1:
        return attention
    module = paths[id(cores[0].module)]
    return replace(attention, module=module, inside=tuple(_found(replay, cores, module)))


def _found(replay: Replay, cores: list[Core], module: str) -> list[tuple[str, str, tuple[int, ...]]]:
    calls = [
        call
        for call in replay.base.calls
        if is_linear(call.module)
        and (not module or call.path.startswith(f"{module}."))
        and replay.base.count(call.path) == 1
        and call.output.shape[-1] == linear_sizes(call.module)[1]
    ]
    moves = {call.path: _moved(replay, cores, call, lambda value: value + torch.randn_like(value)) for call in calls}
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for role in ROLES:
        last = _last(replay, [call for call in calls if moves[call.path] == {role}])
        if last is not None:
            found.append((role, last.path, ()))
    if {"key", "value"}.isdisjoint(role for role, _, _ in found):
        both = _last(replay, [call for call in calls if moves[call.path] == {"key", "value"}])
        found += [] if both is None else _halves(replay, cores, both)
    return found


def _moved(replay: Replay, cores: list[Core], call: Call, by: Callable[[Tensor], Tensor]) -> set[str]:
    """Which of queries, keys and values differ when the output of a linear does."""
    with watched_attention() as seen:
        replay.run(edit=call.path, by=by)
    kept = {id(core.module) for core in cores}
    seen = [core for core in seen if id(core.module) in kept]
    if len(seen) != len(cores):
        return set()
    pairs = [
        (role, old, new)
        for one, other in zip(cores, seen, strict=True)
        for role, old, new in zip(ROLES, one.given, other.given, strict=True)
    ]
    return {role for role, old, new in pairs if not same(old, new)}


def _last(replay: Replay, calls: list[Call]) -> Call | None:
    """The one linear of these that none of the others reads; None where there are none, or several."""
    ends = []
    for call in calls:
        trace = replay.run(edit=call.path, by=lambda value: value + torch.randn_like(value))
        if all(same(trace[other.path].input, other.input) for other in calls if other is not call):
            ends.append(call)
    return ends[0] if len(ends) == 1 else None


def _halves(replay: Replay, cores: list[Core], call: Call) -> list[tuple[str, str, tuple[int, ...]]]:
    """The outputs of one linear that make keys, and those that make values: two parts of each head, or of all."""
    width = linear_sizes(call.module)[1]
    core = cores[0]
    for blocks in dict.fromkeys((core.kv_heads, 1)):
        values = core.value_dim * (core.kv_heads // blocks)
        each = width // blocks
        if width % blocks or not 0 < values < each:
            continue
        for keys, made in (((0, each - values), (each - values, each)), ((values, each), (0, values))):
            if _moved(replay, cores, call, _in(blocks, *made)) == {"value"} and _moved(
                replay, cores, call, _in(blocks, *keys)
            ) == {"key"}:
                return [("key", call.path, (blocks, *keys)), ("value", call.path, (blocks, *made))]
    return []


def _in(blocks: int, start: int, stop: int) -> Callable[[Tensor], Tensor]:
    """A change of some outputs only."""

    def change(value: Tensor) -> Tensor:
        moved = value.clone(memory_format=torch.contiguous_format)
        view = moved.view(*moved.shape[:-1], blocks, -1)
        view[..., start:stop] += torch.randn_like(view[..., start:stop])
        return moved

    return change
