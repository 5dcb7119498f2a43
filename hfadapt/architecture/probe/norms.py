"""How a layer adds its parts up, and what each norm in it is for; told by equations, not by names."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from .attention import Parts
from .replay import Call, Replay, is_norm, same


@dataclass
class Residual:
    """The style of a layer, its norms by role and the dropout leaves after its outputs."""

    style: str | None = None
    norms: dict[str, str] = field(default_factory=dict)
    dropouts: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def find_residual(replay: Replay, parts: Parts) -> Residual:
    """Explain the layer's output as a sum of its input and its sub-layers' outputs, with norms around them."""
    found = Residual()
    base, attention = replay.base, parts.attention
    if attention is None or parts.ffn_out is None:
        return found
    outputs = {"attention": attention.output, "ffn": parts.ffn_out}
    if parts.cross is not None:
        outputs["cross"] = parts.cross.output
    norms = [
        call for call in base.calls if is_norm(call.path, call.module) and call.input.numel() == base.hidden.numel()
    ]
    added: dict[str, Tensor] = {}
    for part, path in outputs.items():
        added[part] = base[path].output.reshape(base.hidden.shape)
        norm = _norm_of(norms, added[part])
        if norm is not None:
            found.norms[f"sandwich_{part}"] = norm.path
            added[part] = norm.output.reshape(base.hidden.shape)
        dropout = _dropout_after(replay, base[path])
        if dropout is not None:
            found.dropouts[part] = dropout

    inputs = {"attention": base[attention.first].input, "ffn": base[parts.ffn_in[0]].input}
    if parts.cross is not None:
        inputs["cross"] = base[parts.cross.first].input
    for explain in (_sequential, _parallel, _post):
        roles = explain(base.hidden, base.output, added, inputs, norms)
        if roles is None:
            continue
        if explain is _parallel and _follows(replay, attention.output, parts.ffn_in[0]):
            continue
        sandwich = any(role.startswith("sandwich") for role in found.norms)
        styles = {_sequential: "sandwich" if sandwich else "pre", _parallel: "parallel", _post: "post"}
        found.style = styles[explain]
        found.norms |= roles
        return found
    found.missing.append(
        "the sum that gives the layer's output: it is none of norm(h + f(h)), h + f(norm(h)), h + norm(f(h)) and "
        "h + attention(norm(h)) + ffn(norm(h)), so the layer has parts or scales that were not found"
    )
    return found


def _sequential(
    hidden: Tensor, output: Tensor, added: dict[str, Tensor], inputs: dict[str, Tensor], norms: list[Call]
) -> dict[str, str] | None:
    """h + f(norm(h)), one sub-layer after the other; the norms may be missing (sandwich layers without them)."""
    roles: dict[str, str] = {}
    stream = hidden
    for part in _order(added):
        role = _reads(stream, inputs[part], norms)
        if role is None:
            return None
        if role:
            roles[f"pre_{part}"] = role
        stream = stream + added[part]
    return roles if same(stream, output) else None


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
    return roles if same(hidden + sum(added.values()), output) else None


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


def _dropout_after(replay: Replay, call: Call) -> str | None:
    """The dropout leaf that takes a linear's output, unless it is shared with another place."""
    for other in replay.base.calls:
        if isinstance(other.module, nn.Dropout) and same(other.input, call.output):
            return other.path if replay.base.count(other.path) == 1 else None
    return None


def _order(added: dict[str, Tensor]) -> list[str]:
    return [part for part in ("attention", "cross", "ffn") if part in added]
