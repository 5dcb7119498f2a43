"""How a layer adds its parts up, and what each norm in it is for; told by equations, not by names."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..linears import is_linear
from .attention import Parts
from .replay import Call, Replay, is_block, is_norm, same


@dataclass
class Residual:
    """The style of a layer, its norms by role and the dropout leaves after its outputs."""

    style: str | None = None
    norms: dict[str, str] = field(default_factory=dict)
    dropouts: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def find_residual(replay: Replay, parts: Parts) -> Residual:
    """Explain the layer's output as a sum of its input and its sub-layers' outputs, with norms around them.

    Where the linears do not add up to it, a whole module may be the feed-forward part; `parts` then says so.
    """
    found = Residual()
    if parts.attention is None:
        return found
    linears = [(parts.ffn_in, parts.ffn_out)] if parts.ffn_out is not None else []
    for opening, closing in [*linears, *(((block,), block) for block in parts.blocks)]:
        found = _explained(replay, parts, opening, closing)
        if found.style is not None:
            if (opening, closing) not in linears:
                parts.missing = [what for what in parts.missing if not what.startswith("the feed-forward part")]
            parts.ffn_in, parts.ffn_out = opening, closing
            return found
    if linears:
        found.missing.append(
            "the sum that gives the layer's output: it is none of norm(h + f(h)), h + f(norm(h)), h + norm(f(h)) and "
            "h + attention(norm(h)) + ffn(norm(h)), so the layer has parts or scales that were not found"
        )
    return found


def _explained(replay: Replay, parts: Parts, opening: tuple[str, ...], closing: str) -> Residual:
    """The style and the norms with one candidate for the feed-forward part; no style where it does not add up."""
    found = Residual()
    base, attention = replay.base, parts.attention
    assert attention is not None
    outputs = {"attention": attention.output, "ffn": closing}
    if parts.cross is not None:
        outputs["cross"] = parts.cross.output
    norms = [
        call for call in base.calls if is_norm(call.path, call.module) and call.input.numel() == base.hidden.numel()
    ]
    added: dict[str, Tensor] = {}
    for part, path in outputs.items():
        if base[path].output.numel() != base.hidden.numel():
            return found
        added[part] = base[path].output.reshape(base.hidden.shape)
        norm = _norm_of(norms, added[part])
        if norm is not None:
            found.norms[f"sandwich_{part}"] = norm.path
            added[part] = norm.output.reshape(base.hidden.shape)
        behind = _behind(replay, base[path] if norm is None else norm)
        if behind is not None:
            found.dropouts[part] = behind.path
            added[part] = behind.output.reshape(base.hidden.shape)

    inputs = {"attention": base[attention.first].input, "ffn": base[opening[0]].input}
    if parts.cross is not None:
        inputs["cross"] = base[parts.cross.first].input
    for explain in (_sequential, _parallel, _post):
        roles = explain(base.hidden, base.output, added, inputs, norms)
        if roles is None:
            continue
        if explain is _parallel and _follows(replay, attention.output, opening[0]):
            continue
        sandwich = any(role.startswith("sandwich") for role in found.norms)
        styles = {_sequential: "sandwich" if sandwich else "pre", _parallel: "parallel", _post: "post"}
        found.style = styles[explain]
        found.norms |= roles
        return found
    return found


def _sequential(
    hidden: Tensor, output: Tensor, added: dict[str, Tensor], inputs: dict[str, Tensor], norms: list[Call]
) -> dict[str, str] | None:
    """h + f(norm(h)), one sub-layer after the other; the norms may be missing (sandwich layers without them).

    What is added may be scaled, by one number (Granite) or one for each hidden unit (BEiT).
    """
    roles: dict[str, str] = {}
    stream: Tensor | None = hidden
    order = _order(added)
    for part, following in zip(order, [*order[1:], None], strict=True):
        role = _reads(stream, inputs[part], norms)
        if role is None:
            return None
        if role:
            roles[f"pre_{part}"] = role
        ends = [output] if following is None else _sources(inputs[following], norms)
        ends = [end.reshape(hidden.shape) for end in ends if end.numel() == hidden.numel()]
        stream = next((end for end in ends if _adds(end - stream, added[part])), None)
        if stream is None:
            return None
    return roles


def _sources(source: Tensor, norms: list[Call]) -> list[Tensor]:
    """What a sub-layer's input may be made of: the inputs of the norms that give it, or itself."""
    return [*(norm.input for norm in norms if same(norm.output, source)), source]


def _adds(change: Tensor, added: Tensor) -> bool:
    """Whether a change of the stream is what a sub-layer adds to it, as it is or scaled for each hidden unit."""
    return same(change, added) or same(change, _ratio(change, added) * added)


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """The factor of each hidden unit that comes nearest to making ``other`` ``one``."""
    squares = other.square().sum((0, 1))
    return (one * other).sum((0, 1)) / squares.clamp_min(torch.finfo(squares.dtype).tiny)


def _parallel(
    hidden: Tensor, output: Tensor, added: dict[str, Tensor], inputs: dict[str, Tensor], norms: list[Call]
) -> dict[str, str] | None:
    """h + attention(norm(h)) + ffn(norm(h)), both from the layer's input."""
    roles: dict[str, str] = {}
    for part in _order(added):
        role = _reads(hidden, inputs[part], norms)
        if role is None:
            return None
        if role:
            roles[f"pre_{part}"] = role
    return roles if _adds(output - hidden, sum(added.values(), torch.zeros_like(hidden))) else None


def _post(
    hidden: Tensor, output: Tensor, added: dict[str, Tensor], inputs: dict[str, Tensor], norms: list[Call]
) -> dict[str, str] | None:
    """norm(h + f(h)), one sub-layer after the other."""
    roles: dict[str, str] = {}
    stream = hidden
    for part in _order(added):
        if not same(inputs[part], stream):
            return None
        norm = _norm_of(norms, stream + added[part])
        if norm is None:
            return None
        roles[f"post_{part}"] = norm.path
        stream = norm.output.reshape(hidden.shape)
    return roles if same(stream, output) else None


def _reads(stream: Tensor, source: Tensor, norms: list[Call]) -> str | None:
    """The norm through which a sub-layer reads the stream: its path, "" for none, None when it reads something else."""
    for norm in norms:
        if same(norm.input, stream) and same(norm.output, source):
            return norm.path
    return "" if same(stream, source) else None


def _follows(replay: Replay, first: str, second: str) -> bool:
    """Whether the input of one leaf depends on the output of another."""
    trace = replay.run(edit=first, by=lambda value: 2 * value + 1)
    return not same(trace[second].input, replay.base[second].input)


def _norm_of(norms: list[Call], value: Tensor) -> Call | None:
    return next((norm for norm in norms if same(norm.input, value)), None)


def _behind(replay: Replay, call: Call) -> Call | None:
    """The last of the leaves that take an output one by one: dropout, and a scale for each hidden unit (DINOv2).

    A leaf that is shared with another place is none.
    """
    found: Call | None = None
    value, hidden = call.output, replay.base.hidden
    for other in replay.base.calls[replay.base.calls.index(call) + 1 :]:
        if next(other.module.children(), None) is not None or is_linear(other.module):
            continue
        drops = isinstance(other.module, nn.Dropout)
        if not (drops or is_block(other.path, other.module)) or not same(other.input, value):
            continue
        if other.output.numel() != hidden.numel() or replay.base.count(other.path) != 1:
            continue
        before, after = other.input.reshape(hidden.shape), other.output.reshape(hidden.shape)
        if drops or same(after, _ratio(after, before) * before):
            found, value = other, other.output
    return found


def _order(added: dict[str, Tensor]) -> list[str]:
    return [part for part in ("attention", "cross", "ffn") if part in added]
