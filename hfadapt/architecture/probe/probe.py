"""From a model of an unknown family to its architecture map."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ...errors import ArchitectureError
from ...errors.inside import require_itself
from ..inputs import first_that_runs
from ..interface import through_interface
from ..linears import linear_sizes
from ..maps import ArchitectureMap, StackMap
from ..modes import evaluating
from .attention import Parts, find_parts, with_layout
from .blocks import block_around
from .inside import with_inside
from .norms import find_residual
from .replay import Replay
from .sizes import sizes_of, stack_kind
from .skeleton import probe_skeleton
from .stacks import inner_lists, layer_lists, outermost_list, without_linears
from .sums import Residual
from .surroundings import Forward, after_stack, watch_forward, word_embedding
from .uniform import differences, kinds_of, linears_of
from .ways_out import ways_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

BATCH = 2
_ADVICE = "another map"  # the ways out of the model in question stand in its place when the error leaves


def probe(model: nn.Module, inputs: dict[str, Any] | None = None) -> ArchitectureMap:
    """Map a model by its data flow.

    Args:
        model: Any model of transformers; it is left as it was. For one without weights (meta device) a shallow twin
            with the same widths is built and probed.
        inputs: Keyword arguments for one forward of `model`; made from the config when None.

    Raises:
        ArchitectureError: A stack of layers could not be mapped whole; the message lists what was found in it and
            what is missing.
    """
    require_itself(model, where="hfadapt.probe", error=ArchitectureError)
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            "no model to map",
            where="hfadapt.probe",
            got=repr(model)[:80],
            allowed="a torch module",
            try_="AutoModel.from_pretrained(name), and that model",
        )
    if inputs is not None and not isinstance(inputs, Mapping):
        got = type(inputs).__name__
        raise ArchitectureError(
            "no inputs",
            where="hfadapt.probe",
            got=got,
            allowed="a map of keyword arguments",
            try_="dict(tokenizer(texts, return_tensors='pt'))",
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        return probe_skeleton(cast("PreTrainedModel", model), probe)
    error: ArchitectureError | None = None
    for root, prefix in [(model, "")] if inputs is not None else _roots(model):
        try:
            return _map(root, model, inputs).under(prefix)
        except _CannotRun as reason:
            error = error or reason
        except ArchitectureError as reason:
            if reason.try_ != _ADVICE:
                raise
            parts = {"where": reason.where, "got": reason.got, "allowed": reason.allowed}
            raise ArchitectureError(reason.what, **parts, try_=ways_out(model)) from reason
    assert error is not None
    raise error


class _CannotRun(ArchitectureError):
    """A model that does not run on inputs that can be made for it; one around it may."""


def _roots(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Base models and their paths, the innermost first, which runs without labels or pooling."""
    found = [model]
    while isinstance(base := getattr(found[-1], "base_model", found[-1]), nn.Module) and base is not found[-1]:
        found.append(base)
    paths = {id(module): name for name, module in model.named_modules()}
    return [(root, paths[id(root)]) for root in reversed(found) if id(root) in paths]


def _map(root: nn.Module, model: nn.Module, inputs: dict[str, Any] | None) -> ArchitectureMap:
    """The map of ``root``, which is ``model`` or a base inside."""
    lists = layer_lists(root)
    if not lists:
        names = ", ".join([name for name, _ in root.named_children()][:6]) or "none"
        raise ArchitectureError(
            "no stack of equal layers was found",
            where=type(model).__name__,
            got=f"modules {names}{without_linears(root)}",
            allowed="layers of one class in an nn.ModuleList or nn.Sequential",
            try_=_ADVICE,
        )
    lists, seen, stacks, left_out = _best(root, lists, inputs)
    if not stacks and (few := layer_lists(root, 1)).keys() != lists.keys():
        # Only lists of layers with fewer linears ran: a hybrid's, beside towers that had nothing to read.
        lists, seen, stacks, left_out = _best(root, few, inputs)
    if not stacks:
        raise ArchitectureError(
            "no stack of layers ran in a forward",
            where=type(model).__name__,
            got=sorted(lists),
            allowed="a model whose forward calls the layers of one of these lists",
            try_=_ADVICE,
        )
    ran = {call.path.rpartition(".")[0] for call in seen.layers}
    left_out |= {path: "it did not run on the inputs of the probe" for path in lists if path not in ran}
    for path, why in left_out.items():
        logger.warning("%s: %s is not mapped, and methods leave it out: %s", type(model).__name__, path, why)
    interface, own = through_interface(root, stacks)
    pooler = "pooler" if isinstance(getattr(root, "pooler", None), nn.Module) else None
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return ArchitectureMap(
        model_type, tuple(stacks), interface, pooler, source="probe", left_out=left_out, own_attention=own
    )


_Lists = Mapping[str, nn.ModuleList | nn.Sequential]
_Found = tuple[_Lists, Forward, list[StackMap], dict[str, str]]


def _best(root: nn.Module, lists: _Lists, inputs: dict[str, Any] | None) -> _Found:
    """What `_of_lists` says of these lists, or of those inside their members where more of their layers are mapped.

    What was taken for layers may be stages of them, which return other widths (Swin, LeViT).

    Raises:
        ArchitectureError: as of `_of_lists`.
    """
    found: _Found | None = None
    error: ArchitectureError | None = None
    try:
        found = _of_lists(root, lists, inputs)
        if not any(stack.left_out for stack in found[2]):
            return found
    except _CannotRun:
        raise
    except ArchitectureError as reason:
        error = reason
    inner = inner_lists(root, lists)
    try:
        if inner:
            other = _of_lists(root, inner, inputs)
            if found is None or _mapped(other) > _mapped(found):
                return other
    except ArchitectureError as reason:
        logger.debug("the lists inside layers are none of layers: %s", reason)
    if found is not None:
        return found
    assert error is not None
    raise error


def _mapped(found: _Found) -> int:
    """How many layers have slots."""
    return sum(stack.num_layers - len(stack.left_out) for stack in found[2])


def _of_lists(root: nn.Module, lists: _Lists, inputs: dict[str, Any] | None) -> _Found:
    """These lists of layers, one forward of the model, and what `_stacks` says of those that ran in it.

    Raises:
        ArchitectureError: as of `_stacks`, or no forward could be made.
    """
    layers = {f"{path}.{index}": layer for path, found in lists.items() for index, layer in enumerate(found)}
    with evaluating(root), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        seen = _forward(root, layers, inputs)
        return lists, seen, *_stacks(root, seen, _called(root, lists, seen))


def _stacks(root: nn.Module, seen: Forward, found: list[tuple[str, ...]]) -> tuple[list[StackMap], dict[str, str]]:
    """The maps of the stacks that ran, and why others could not be mapped.

    Raises:
        ArchitectureError: None could be.
    """
    stacks: list[StackMap] = []
    refused: dict[str, ArchitectureError] = {}
    for paths in found:
        try:
            stacks.append(_stack(root, seen, paths))
        except ArchitectureError as error:
            refused[paths[0].rpartition(".")[0]] = error
    if refused and not stacks:
        raise next(iter(refused.values()))
    return stacks, {path: _why(error) for path, error in refused.items()}


def _why(error: ArchitectureError) -> str:
    """An error without its advice, for the log."""
    return f"{error.where}: {error.what}; got: {error.got}"


def _nothing() -> None:
    """What a module that is no transformers model has for output embeddings."""


def _forward(root: nn.Module, layers: dict[str, nn.Module], inputs: dict[str, Any] | None) -> Forward:
    caches = "use_cache" in inspect.signature(root.forward).parameters

    def run(given: dict[str, Any]) -> Forward:
        return watch_forward(root, layers, {**given, "use_cache": False} if caches else given)

    if inputs is None:
        try:
            return first_that_runs(root, BATCH, run)[1]
        except ArchitectureError as error:
            raise _CannotRun(
                error.what, where=error.where, got=error.got, allowed=error.allowed, try_=error.try_
            ) from error
    try:
        return run(dict(inputs))
    except Exception as error:  # any model may refuse what it is given in any way; the cause is kept and shown
        shapes = {name: tuple(getattr(value, "shape", ())) or value for name, value in inputs.items()}
        raise ArchitectureError(
            f"the model could not be run to map it ({type(error).__name__}: {error})",
            where=type(root).__name__,
            got=shapes,
            allowed="inputs on which the forward ends without an error",
            try_="inputs with which model(**inputs) runs",
        ) from error


def _called(root: nn.Module, lists: Mapping[str, Any], seen: Forward) -> list[tuple[str, ...]]:
    """Layer paths of each stack in the order they ran; the stacks in the order the model defines them.

    Lists of shared layers inside one outer list (ALBERT's groups) are one stack.
    """
    grouped: dict[str, list[str]] = {}
    for call in seen.layers:
        path = call.path.rpartition(".")[0]
        shared = sum(other.path == call.path for other in seen.layers) > 1
        grouped.setdefault(outermost_list(root, path) if shared else path, []).append(call.path)
    order = list(lists)
    return sorted(map(tuple, grouped.values()), key=lambda paths: order.index(paths[0].rpartition(".")[0]))


def _stack(root: nn.Module, seen: Forward, paths: tuple[str, ...]) -> StackMap:
    """The map of one stack: that of its commonest kind of layer, with what other kinds have and what was left out.

    Raises:
        ArchitectureError: No kind of its layers could be mapped.
    """
    kinds = kinds_of(root, paths, seen.fired)
    mapped: list[tuple[list[int], StackMap]] = []
    refused: list[tuple[list[int], ArchitectureError]] = []
    for kind in kinds:
        try:
            mapped.append((kind, _one_kind(root, seen, paths, tuple(paths[index] for index in kind))))
        except ArchitectureError as error:
            refused.append((kind, error))
    if not mapped:
        raise max(refused, key=lambda pair: len(pair[0]))[1]
    if not all(stack.listed for _, stack in mapped):
        mapped = [(kind, replace(stack, listed=False)) for kind, stack in mapped]
    _, most = max(mapped, key=lambda pair: (len(pair[0]), pair[0]))
    others = {index: stack for kind, stack in mapped if stack != most for index in kind}
    left_out = {index: _why(error) for kind, error in refused for index in kind}
    return replace(most, others=others, left_out=left_out)


def _one_kind(root: nn.Module, seen: Forward, paths: tuple[str, ...], alike: tuple[str, ...]) -> StackMap:
    """The map of a stack as its layers ``alike`` have it, from the last of them."""
    last = max(number for number, call in enumerate(seen.layers) if call.path == alike[-1])
    end = max(number for number, call in enumerate(seen.layers) if call.path == paths[-1])
    first = next(number for number, call in enumerate(seen.layers) if call.path == paths[0])
    layer = root.get_submodule(alike[-1])
    where = f"{type(root).__name__}, {alike[-1]} ({type(layer).__name__})"
    try:
        replay = Replay(layer, seen.layers[last].args, seen.layers[last].kwargs, seen.rows)
        if replay.tokens > 1:
            parts = find_parts(replay)
            residual = find_residual(replay, parts)
        else:
            parts, residual = Parts(missing=["a second position, by which attention could be told"]), Residual()
    except Exception as error:  # an unknown layer may fail in any way when it is interfered with; the cause is shown
        text = "the layer cannot be watched"
        raise ArchitectureError(
            text,
            where=where,
            got=f"{type(error).__name__}: {error}"[:300],
            allowed="a layer that runs again on what it was called with",
            try_=_ADVICE,
        ) from error
    missing = parts.missing + residual.missing
    attention = parts.attention
    heads = sizes_of(layer, attention, replay)
    if heads is None and attention is not None and (block := block_around(replay, attention)) is not None:
        attention = block  # one linear that makes more than queries, keys and values: a state space
        heads = sizes_of(layer, attention, replay)
    if heads is None and residual.style is not None:  # values wider than keys, and norms within (LeViT)
        parts = replace(parts, attention=None, missing=[])
        residual = find_residual(replay, parts)
        missing, attention = parts.missing + residual.missing, parts.attention
        heads = sizes_of(layer, attention, replay)
    if heads is None:
        missing.append("the number of heads: no size of the attention module divides its linears' widths")
    elif attention is not None and attention.is_block:
        attention = with_inside(layer, replay, attention)
    elif attention is not None and attention.fused is not None:
        attention = with_layout(replay, attention, heads.heads, heads.kv_heads, heads.head_dim)
    linears = linears_of((attention, parts.cross), (*parts.ffn_in, parts.ffn_out))
    missing += differences(layer, root, alike, linears, residual.norms.values(), seen.fired)
    if missing or heads is None or residual.style is None:
        raise _refusal(where, attention, parts.cross, parts.ffn_in, parts.ffn_out, residual, missing)
    ffn_out = parts.ffn_out or ""
    shared = len(set(paths)) < len(paths)
    path = paths[0].rpartition(".")[0]
    head = getattr(root, "get_output_embeddings", _nothing)()
    final_norm, projection = after_stack(seen, seen.layers[end], head)
    is_block = parts.ffn_in == (ffn_out,) or not ffn_out
    hidden_size = replay.hidden.shape[-1]
    ffn_size = hidden_size if is_block else linear_sizes(layer.get_submodule(ffn_out))[0]
    others = [number for number, call in enumerate(seen.layers[:first], 1) if call.path not in paths]
    return StackMap(
        path=outermost_list(root, path) if shared else path,
        layer_paths=paths,
        kind=stack_kind(root, path, parts.causal, parts.cross is not None),
        causal=parts.causal,
        style=residual.style,
        attention=attention,
        cross_attention=parts.cross,
        ffn_in=parts.ffn_in,
        ffn_out=ffn_out,
        norms=residual.norms,
        hidden_size=hidden_size,
        num_heads=heads.heads,
        num_kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        value_dim=heads.value_dim if heads.value_dim != heads.head_dim else 0,
        rows_known=replay.hidden.dim() == 3 and replay.rows_first and replay.keeps_rows_apart(),
        time_first=replay.time_first,
        listed=replay.listed,
        channels_first=replay.channels_first,
        ffn_size=ffn_size,
        ffn_gated_in_one=not is_block and linear_sizes(layer.get_submodule(parts.ffn_in[0]))[1] == 2 * ffn_size,
        flat_ffn=bool(ffn_out) and replay.rows_first and replay.base[ffn_out].input.dim() == 2,
        attn_out_dropout=residual.dropouts.get("attention"),
        cross_out_dropout=residual.dropouts.get("cross"),
        ffn_out_dropout=residual.dropouts.get("ffn"),
        final_norm=final_norm,
        projection_out=projection,
        embedding=word_embedding(seen, first, max(others, default=0)),
    )


def _refusal(
    where: str, attention: Any, cross: Any, ffn_in: Any, ffn_out: Any, residual: Any, missing: Any
) -> ArchitectureError:
    found = {
        "attention": attention and [attention.first, attention.key, attention.value, attention.output],
        "cross attention": cross and [cross.query or cross.fused, cross.key, cross.value, cross.output],
        "ffn": [*ffn_in, ffn_out] if ffn_out else None,
        "norms": residual.norms or None,
        "style": residual.style,
    }
    shown = ", ".join(f"{name} {value}" for name, value in found.items() if value) or "nothing"
    return ArchitectureError(
        "the layers could not be mapped whole",
        where=where,
        got=f"found {shown}; missing {'; '.join(missing)}",
        allowed="layers of one attention (and one cross attention), one feed-forward part and their norms",
        try_=_ADVICE,
    )
