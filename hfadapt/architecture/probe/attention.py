"""Which linears of a layer make up its attention, told by interfering with them.

A linear is the query projection if changing its output at one position changes the heads' output there only, the
value projection if doubling its output doubles the heads' output, and the key projection if it reaches other
positions without being the value. Names play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..linears import is_linear, linear_sizes
from ..maps import AttentionMap
from .blocks import hidden_blocks
from .replay import Call, Replay, same

# By how much a factor differs from another one that is not the same.
_SEEN = 1e-3


@dataclass
class Parts:
    """The linears of a layer by what they do; `missing` says what could not be told.

    Modules that may be the feed-forward part as a whole (a mixture of experts) are in `blocks`, the outermost first.
    """

    attention: AttentionMap | None = None
    cross: AttentionMap | None = None
    ffn_in: tuple[str, ...] = ()
    ffn_out: str | None = None
    blocks: tuple[str, ...] = ()
    causal: bool = False
    missing: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """The attention, and what reads another hidden state, was told apart."""
        return not any(what.startswith(("self-attention", "the use of")) for what in self.missing)


def find_parts(replay: Replay) -> Parts:
    """Sort the linears of a layer into self-attention, cross-attention and the feed-forward part."""
    parts = Parts()
    everywhere, first, last = replay.moved(None), replay.moved(0), replay.moved(replay.tokens - 1)
    # Experts are sent other tokens, or none, in another run.
    linears = [
        call
        for call in replay.base.calls
        if is_linear(call.module)
        and replay.rows(call.input) is not None
        and all(run.count(call.path) for run in (everywhere, first, last))
    ]
    own = [call for call in linears if not same(call.input, everywhere[call.path].input)]
    foreign = [call for call in linears if call not in own]
    mixed = [call for call in own if replay.positions(call.input, first[call.path].input) - {0}]
    if not mixed:
        parts.missing.append("attention: no linear sees more than its own position")
        return parts
    output = mixed[0]
    end = replay.tokens - 1
    parts.causal = replay.positions(output.input, last[output.path].input) <= {end}
    gates: set[str] = set()
    parts.attention = _attention(replay, own[: own.index(output)], output, "self-attention", parts.missing, gates)
    used = _linears_of(parts.attention) | {output.path}

    if foreign:
        reader = _first_reader(replay, foreign, own)
        if reader is None or reader is output:
            parts.missing.append(f"the use of {_names(foreign)}, which do not read the hidden state")
        else:
            between = [call for call in own if call.path not in used and own.index(call) < own.index(reader)]
            parts.cross = _attention(replay, [*between, *foreign], reader, "cross-attention", parts.missing, gates)
            used |= _linears_of(parts.cross) | {reader.path}

    rest = [call for call in own if call.path not in used | gates]
    _feed_forward(replay, rest, parts)
    taken = {*used, *_linears_of(parts.cross), output.path}
    blocks = [call.path for call in hidden_blocks(replay)]
    parts.blocks = tuple(path for path in blocks if not any(f"{one}.".startswith(f"{path}.") for one in taken))
    return parts


def _attention(
    replay: Replay, candidates: Sequence[Call], output: Call, what: str, missing: list[str], gates: set[str]
) -> AttentionMap | None:
    """The map of the attention that `output` ends, from the linears before it; those that gate it go to `gates`."""
    roles: dict[str, list[str]] = {"query": [], "key": [], "value": []}
    for call in candidates:
        role = _role(replay, call, output)
        if role is not None:
            roles[role].append(call.path)
    if len(roles["query"]) > 1:
        gates |= {path for path in roles["query"] if _is_gate(replay, path, output)}
        roles["query"] = [path for path in roles["query"] if path not in gates]
    found = [path for paths in roles.values() for path in paths]
    if all(len(paths) == 1 for paths in roles.values()):
        query, key, value = found
        module = _common_parent(found)
        return AttentionMap(query, key, value, output.path, module)
    if len(found) == 1 and not roles["query"] and not _is_gated_sum(replay, found[0], output):
        # One linear makes all three; where queries and keys are normed, doubling it doubles the values only.
        return AttentionMap(None, None, None, output.path, _common_parent(found), found[0], "unknown")
    seen = "; ".join(f"{role}: {', '.join(paths) or 'none'}" for role, paths in roles.items())
    missing.append(f"{what} before {output.path!r}: one query, key and value projection each ({seen})")
    return None


def _is_gated_sum(replay: Replay, path: str, output: Call) -> bool:
    """Whether one linear's parts are only multiplied with each other (a gated convolution), with no softmax between."""
    doubled = replay.run(edit=path, by=lambda value: 2 * value)[output.path].input
    return any(same(doubled, factor * output.input) for factor in (4, 8))


def _is_gate(replay: Replay, path: str, output: Call) -> bool:
    """Whether a linear's outputs are factors of what attention gives, all those of one output the same."""

    def move_one(value: Tensor) -> Tensor:
        moved = value.clone(memory_format=torch.contiguous_format)
        moved.view(-1, moved.shape[-1])[0, 0] += 1
        return moved

    moved = replay.run(edit=path, by=move_one)[output.path].input.reshape(-1, output.input.shape[-1])[0]
    before = output.input.reshape(-1, output.input.shape[-1])[0]
    factors = (moved / before)[(moved - before).abs() > _SEEN * before.abs()]
    return bool(factors.numel()) and bool((factors - factors[0]).abs().max() <= _SEEN * factors[0].abs())


def _role(replay: Replay, call: Call, output: Call) -> str | None:
    """What a linear is to the attention that `output` ends; None where it has no part in it."""

    def heads(by) -> Tensor:
        return replay.run(edit=call.path, by=by)[output.path].input

    def move_first(value: Tensor) -> Tensor:
        return replay.shifted(value, slice(0, 1))

    if same(heads(lambda value: 2 * value), 2 * output.input):
        return "value"
    if replay.positions(heads(move_first), output.input) - {0}:
        return "key"
    if replay.positions(heads(lambda value: replay.shifted(value, slice(None))), output.input):
        return "query"
    return None


def _first_reader(replay: Replay, foreign: Sequence[Call], own: Sequence[Call]) -> Call | None:
    """The first linear of the layer's own stream that foreign states reach."""
    trace = replay.run(edit=foreign[-1].path, by=lambda value: value + torch.randn_like(value))
    return next((call for call in own if not same(call.input, trace[call.path].input)), None)


def _feed_forward(replay: Replay, rest: Sequence[Call], parts: Parts) -> None:
    """The linears that are left must be the feed-forward part: one or more that share an input, then one."""
    if len(rest) < 2:
        parts.missing.append(f"the feed-forward part: {_names(rest) or 'no linear'} left after attention")
        return
    *opening, closing = rest
    strangers = [call for call in opening if not same(call.input, opening[0].input)]
    strangers += [call for call in opening if _reaches_only_itself(replay, call, closing) is False]
    if strangers:
        parts.missing.append(f"the feed-forward part: {_names(strangers)} fit neither its input nor its output")
        return
    parts.ffn_in, parts.ffn_out = tuple(call.path for call in opening), closing.path


def _reaches_only_itself(replay: Replay, call: Call, closing: Call) -> bool:
    """Whether a change at one position of a linear reaches that position of the closing linear, and no other."""
    trace = replay.run(edit=call.path, by=lambda value: replay.shifted(value, slice(0, 1)))
    return replay.positions(trace[closing.path].input, closing.input) == {0}


def with_layout(replay: Replay, attention: AttentionMap, heads: int, kv_heads: int, head_dim: int) -> AttentionMap:
    """The map of a fused attention with the order of q, k and v along the linear's outputs."""
    layouts = {
        "blocks": _value_columns_in_blocks(heads, kv_heads, head_dim),
        "heads": _value_columns_in_groups(heads, 1, head_dim) if heads == kv_heads else None,
        "groups": _value_columns_in_groups(kv_heads, heads // kv_heads, head_dim),
    }
    output = replay.base[attention.output]
    width = linear_sizes(replay.base[attention.fused or ""].module)[1]
    for layout, columns in layouts.items():
        if columns is None or columns.numel() != width:
            continue
        factor = torch.where(columns, 2.0, 1.0).to(replay.device)
        trace = replay.run(edit=attention.fused, by=lambda value, factor=factor: value * factor)
        if same(trace[attention.output].input, 2 * output.input):
            return replace(attention, fused_layout=layout)
    return attention


def _value_columns_in_blocks(heads: int, kv_heads: int, head_dim: int) -> Tensor:
    sizes = ((heads, False), (kv_heads, False), (kv_heads, True))
    return torch.cat([torch.full((count * head_dim,), value) for count, value in sizes])


def _value_columns_in_groups(groups: int, queries: int, head_dim: int) -> Tensor:
    group = torch.cat([torch.zeros(queries + 1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)])
    return group.repeat(groups).repeat_interleave(head_dim)


def _linears_of(attention: AttentionMap | None) -> set[str]:
    if attention is None:
        return set()
    return {path for path in (attention.query, attention.key, attention.value, attention.fused) if path}


def _common_parent(paths: Sequence[str]) -> str:
    """The innermost module that holds all these."""
    split = [path.split(".")[:-1] for path in paths]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) != 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _names(calls: Sequence[Call]) -> str:
    return ", ".join(call.path for call in calls)
