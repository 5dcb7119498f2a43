"""How a layer adds its parts up, and what each norm in it is for; told by equations, not by names."""

from __future__ import annotations

import torch
from torch import Tensor

from ..maps import AttentionMap
from .apart import explained_apart
from .attention import Parts
from .blocks import (
    as_feed_forward,
    attentions_of,
    hidden_blocks,
    holds_core,
    is_causal,
    linear_pairs,
    mixes,
    whole_layers,
)
from .replay import Call, Replay, same
from .sums import Ends, Residual, added_by, adds, in_order, norm_of, norms_of, read_by, reads

# Candidates of a kind that are tried, the outermost first.
_MOST = 4


def find_residual(replay: Replay, parts: Parts) -> Residual:
    """Explain the layer's output as a sum of its input and its sub-layers' outputs, with norms around them.

    Where the linears do not add up to it, a whole module may be the feed-forward part, or the attention; `parts` then
    says so. Where the whole sum is none of the known ones, each sub-layer may still be seen to be added to something.
    """
    linears = [(parts.ffn_in, parts.ffn_out)] if parts.ffn_out is not None else []
    if parts.attention is not None:
        for opening, closing in [*linears, *(((block,), block) for block in parts.blocks)]:
            found = explained(replay, _ends(parts.attention, parts.cross, opening, closing))
            if found.style is not None:
                if (opening, closing) not in linears:
                    parts.missing = [what for what in parts.missing if not what.startswith("the feed-forward part")]
                parts.ffn_in, parts.ffn_out = opening, closing
                return found
    found = _by_blocks(replay, parts)
    if found is None:
        replay.mixes_behind = True
        found = _by_blocks(replay, parts, whole=True)
    if found is not None:
        return found
    found = Residual()
    if linears and parts.attention is not None:
        found.missing.append(
            "the sum that gives the layer's output: it is none of norm(h + f(h)), h + f(norm(h)), h + norm(f(h)) and "
            "h + attention(norm(h)) + ffn(norm(h)), so the layer has parts or scales that were not found"
        )
    return found


def _by_blocks(replay: Replay, parts: Parts, whole: bool = False) -> Residual | None:
    """Explain the layer by modules that are known by their ends alone; None where that fails, else `parts` says which.

    First with the whole sum, then with each part by itself; first with both parts, then with the one that there is;
    with ``whole`` then the layer as one part.
    """
    blocks = list(hidden_blocks(replay))
    blocks = blocks[: 4 * _MOST]
    mixing = {call.path: mixes(replay, call) for call in blocks}
    attentions = [parts.attention] if parts.attention is not None and parts.complete else []
    if replay.cores:  # then what no attention function is called in is none
        calls = {call.path: call for call in replay.base.calls}
        attentions = [one for one in attentions if one.module not in calls or holds_core(replay, calls[one.module])]
    mixers = [call for call in blocks if mixing[call.path]]
    mixers.sort(key=lambda call: not holds_core(replay, call))  # attention before a state space beside it
    attentions += [attention for call in mixers[:_MOST] for attention in attentions_of(replay, call)]
    order = {call.path: number for number, call in enumerate(replay.base.calls)}
    starts = [order.get(attention.output, 0) for attention in attentions]
    rest = [call for call in blocks if not mixing[call.path]]
    rest.sort(key=lambda call: (order[call.path] < min(starts, default=0), call.path.count("."), order[call.path]))
    ffns = [(parts.ffn_in, parts.ffn_out)] if parts.ffn_out is not None else []
    ffns += [as_feed_forward(replay, call) for call in rest[:_MOST]]
    ffns += [pair for pair in linear_pairs(replay) if pair not in ffns][:_MOST]
    pairs: list[tuple[AttentionMap | None, tuple[tuple[str, ...], str]]] = [
        (attention, ffn) for attention in attentions for ffn in ffns if _apart(attention, ffn)
    ]
    pairs += [(attention, ((), "")) for attention in attentions] + [(None, ffn) for ffn in ffns]
    singles = len(pairs) - len(attentions) - len(ffns)
    for some in (pairs[:singles], pairs[singles:]):
        for explain in (explained, explained_apart):
            for attention, (opening, closing) in some:
                cross = parts.cross if attention is parts.attention else None
                found = explain(replay, _ends(attention, cross, opening, closing))
                if found.style is None:
                    continue
                parts.missing = []
                parts.attention, parts.cross = attention, cross
                parts.ffn_in, parts.ffn_out = opening, closing
                if attention is not None and attention.is_block:
                    parts.causal = is_causal(replay)
                return found
    for attention in whole_layers(replay) if whole else ():  # narrow parts within one residual sum (MobileBERT)
        found = explained(replay, _ends(attention, None, (), ""))
        if found.style is not None:
            parts.missing, parts.attention, parts.cross = [], attention, None
            parts.ffn_in, parts.ffn_out, parts.causal = (), "", is_causal(replay)
            return found
    return None


def _ends(
    attention: AttentionMap | None, cross: AttentionMap | None, opening: tuple[str, ...], closing: str
) -> dict[str, Ends]:
    """The sub-layers of a layer by their names, in the order they run."""
    ends = {} if attention is None else {"attention": Ends(attention.first, attention.output)}
    if cross is not None:
        ends["cross"] = Ends(cross.first, cross.output)
    if closing:
        ends["ffn"] = Ends(opening[0], closing)
    return ends


def _apart(attention: AttentionMap, ffn: tuple[tuple[str, ...], str]) -> bool:
    """Whether an attention and a feed-forward part hold nothing of one another."""
    return not any(
        f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
        for one in {attention.output, attention.module} - {""}
        for other in (*ffn[0], ffn[1])
    )


def explained(replay: Replay, ends: dict[str, Ends]) -> Residual:
    """The style and the norms with one choice of sub-layers; no style where they do not add up."""
    found, added = Residual(), {}
    base = replay.base
    norms = norms_of(replay)
    for part, end in ends.items():
        value = added_by(replay, found, part, end, norms)
        if value is None:
            return Residual()
        added[part] = value
    inputs = {part: read_by(replay, end) for part, end in ends.items()}
    for explain in (_sequential, _parallel, _post):
        roles = explain(base.hidden, base.output, added, inputs, norms)
        if roles is None:
            continue
        if explain is _parallel and (len(ends) < 2 or _follows(replay, ends["attention"].last, ends["ffn"].first)):
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
    order = in_order(added)
    for part, following in zip(order, [*order[1:], None], strict=True):
        role = reads(stream, inputs[part], norms)
        if role is None:
            return None
        if role:
            roles[f"pre_{part}"] = role
        ends = [output] if following is None else _sources(inputs[following], norms)
        ends = [end.reshape(hidden.shape) for end in ends if end.numel() == hidden.numel()]
        stream = next((end for end in ends if adds(end - stream, added[part])), None)
        if stream is None:
            return None
    return roles


def _sources(source: Tensor, norms: list[Call]) -> list[Tensor]:
    """What a sub-layer's input may be made of: the inputs of the norms that give it, or itself."""
    return [*(norm.input for norm in norms if same(norm.output, source)), source]


def _parallel(
    hidden: Tensor, output: Tensor, added: dict[str, Tensor], inputs: dict[str, Tensor], norms: list[Call]
) -> dict[str, str] | None:
    """h + attention(norm(h)) + ffn(norm(h)), both from the layer's input."""
    roles: dict[str, str] = {}
    for part in in_order(added):
        role = reads(hidden, inputs[part], norms)
        if role is None:
            return None
        if role:
            roles[f"pre_{part}"] = role
    return roles if adds(output - hidden, sum(added.values(), torch.zeros_like(hidden))) else None


def _post(
    hidden: Tensor, output: Tensor, added: dict[str, Tensor], inputs: dict[str, Tensor], norms: list[Call]
) -> dict[str, str] | None:
    """norm(h + f(h)), one sub-layer after the other."""
    roles: dict[str, str] = {}
    stream = hidden
    for part in in_order(added):
        if not same(inputs[part], stream):
            return None
        norm = norm_of(norms, stream + added[part])
        if norm is None:
            return None
        roles[f"post_{part}"] = norm.path
        stream = norm.output.reshape(hidden.shape)
    return roles if same(stream, output) else None


def _follows(replay: Replay, first: str, second: str) -> bool:
    """Whether the input of one leaf depends on the output of another."""
    trace = replay.run(edit=first, by=lambda value: 2 * value + 1)
    return not same(trace[second].input, replay.base[second].input)
