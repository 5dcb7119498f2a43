"""Which linears, tables and convolutions of a model ``target_modules`` means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from hfadapt import select_layers
from hfadapt.architecture import convolution_leaves, is_linear, linear_leaves, table_leaves
from hfadapt.errors import AttachError, did_you_mean
from hfadapt.method import sites

from .names import (
    ALL,
    POSITION_TABLES,
    Target,
    convolutions_named,
    matches,
    named_site,
    parameters_named,
    refuse_other_tables,
    targets_by_name,
    warn_of_convolutions,
)

if TYPE_CHECKING:
    from hfadapt import ArchitectureMap, Method, MethodConfig, Site
    from hfadapt.architecture import AttentionMap, LayerMap

__all__ = ["ROLES", "Target", "find_targets", "refuse_only_read"]

ATTENTION_ROLES = ("query", "key", "value", "output")


def find_targets(names: Sequence[str], config: MethodConfig, arch: ArchitectureMap, model: nn.Module) -> list[Target]:
    """Return the linears that ``names`` mean in the layers that ``config`` chooses, in the order of the model.

    Raises:
        AttachError: a name matches nothing, a role is served by a linear that cannot be sliced, or both a fused linear
            and a slice of it were named.
    """
    if not arch.stacks:
        return targets_by_name(names, config, arch, model)
    layers = select_layers(config, arch)
    # The paths of layers, and of the linears that are theirs and stand elsewhere (XLM).
    inside = {path for layer in arch.layers() for path in (layer.path, *layer.linears.values())}
    found: dict[tuple[str, int, str, str], Target] = {}
    everywhere = config.layers == "all" and config.stack == "all"
    where = f"{config.method} on {arch.model_type}"
    for name in names:
        targets = [t for layer in layers for t in _in_layer(name, layer, model)]
        if not targets and name in ROLES:  # the map has no such role; its layers may have a linear of that name
            targets = [t for layer in layers for t in _named_in_layer(name, layer, model)]
        # A role is one of the map's own linears, and never a module of that name elsewhere, such as in another tower.
        if name not in ROLES and name != ALL:
            targets += _outside(name, inside, model, linear_leaves) if everywhere else []
            if everywhere and not targets:
                refuse_other_tables(name, model, where)
            targets += _outside(name, inside, model, table_leaves) if everywhere else []
            if targets:
                warn_of_convolutions(name, model)
            targets = targets or _convolutions(name, None if everywhere else layers, model, where)
            targets = targets or _parameters(name, None if everywhere else layers, model)
        if not targets:
            raise _no_match(name, config.method, arch, model)
        found.update({(t.site.leaf, t.site.layer, t.site.parameter, t.part): t for t in targets})
    whole = {(leaf, depth) for leaf, depth, _, part in found if not part}
    twice = [t for (leaf, depth, _, part), t in found.items() if part and (leaf, depth) in whole]
    if twice:
        raise AttachError(
            "a fused linear and a slice of it are both named",
            where=where,
            got=f"{twice[0].site.leaf} and {twice[0].part!r}",
            allowed="one of the two",
            try_="name the roles, or the module, but not both",
        )
    return list(found.values())


def _in_layer(name: str, layer: LayerMap, model: nn.Module) -> Iterator[Target]:
    roles = dict(_roles(layer))
    if name in ROLES:
        for leaf, part in (pair for role, pair in roles.items() if role in ROLES[name]):
            yield _target(layer, leaf, part, model)
        return
    yield from _named_in_layer(name, layer, model)


def _named_in_layer(name: str, layer: LayerMap, model: nn.Module) -> Iterator[Target]:
    module = model.get_submodule(layer.path)
    inside = {f"{layer.path}.{path}" if path else layer.path: child for path, child in module.named_modules()}
    # A layer's parts may stand in lists of their own (XLM).
    inside |= {path: model.get_submodule(path) for path in layer.linears.values() if path not in inside}
    for full, child in inside.items():
        if not is_linear(child) or ".hfadapt." in full:
            continue
        if matches(full, name) or (name == ALL and full.rpartition(".")[2] not in POSITION_TABLES):
            yield Target(sites.linear(layer, full, model))


def _role_names() -> dict[str, tuple[str, ...]]:
    """What a user may write, and the roles of a layer it stands for."""
    names: dict[str, tuple[str, ...]] = {}
    for role in ATTENTION_ROLES:
        names[role] = (f"self_{role}", f"cross_{role}")
        names[f"self_{role}"] = (f"self_{role}",)
        names[f"cross_{role}"] = (f"cross_{role}",)
    return {**names, "ffn_in": ("ffn_in",), "ffn_out": ("ffn_out",)}


ROLES = _role_names()


def _roles(layer: LayerMap) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each role of a layer with its linear, and the part of it when it is fused."""
    own = layer.attention if layer.has("attention") else None
    for prefix, attention in (("self", own), ("cross", layer.cross_attention)):
        if attention is None:
            continue
        for role in ATTENTION_ROLES:
            leaf = getattr(attention, role)
            if role == "output" and attention.width < 0:  # a block that does not end in a linear
                continue
            if leaf is not None:
                yield f"{prefix}_{role}", (leaf, "")
            elif attention.fused is not None:
                yield f"{prefix}_{role}", (attention.fused, role)
        yield from ((f"{prefix}_{role}", (path, role if part else "")) for role, path, part in attention.inside)
    if layer.stack.ffn_is_block or not layer.has("ffn"):  # a mixture of experts, or nothing
        return
    yield from (("ffn_in", (leaf, "")) for leaf in layer.ffn_in[:1])
    yield from ((f"ffn_in_{i}", (leaf, "")) for i, leaf in enumerate(layer.ffn_in) if i)
    yield "ffn_out", (layer.ffn_out, "")


def _target(layer: LayerMap, leaf: str, part: str, model: nn.Module) -> Target:
    site = sites.linear(layer, leaf, model)
    if not part:
        return Target(site)
    own = layer.attention if layer.has("attention") else None
    for role, path, bounds in own.inside if own is not None else ():
        if (role, path) == (part, leaf):
            blocks, start, stop = bounds
            return Target(replace(site, part=(blocks, start, stop)), part)
    attention = next(a for a in (own, layer.cross_attention) if a is not None and a.fused == leaf)
    return Target(replace(site, part=_part(layer, attention, part, site.width)), part)


def _part(layer: LayerMap, attention: AttentionMap, role: str, width: int) -> tuple[int, int, int]:
    """The outputs of a fused linear that make one role: ``(blocks, start, stop)`` inside each of equal blocks."""
    stack = layer.stack
    queries, keys = stack.num_heads * stack.head_dim, stack.num_kv_heads * stack.head_dim
    blocks = {"blocks": 1, "heads": stack.num_heads, "groups": stack.num_kv_heads}.get(attention.fused_layout, 0)
    if not blocks or queries + 2 * keys != width:
        raise AttachError(
            f"the {role} part of a fused linear cannot be told apart",
            where=f"{layer.path}: {attention.fused}",
            got=f"layout {attention.fused_layout!r}, {width} outputs",
            allowed=f"layout 'blocks', 'heads' or 'groups' of {queries + 2 * keys} outputs",
            try_=f"lora with target_modules=({(attention.fused or '').rpartition('.')[2]!r},) for all of it",
        )
    q, k = queries // blocks, keys // blocks
    bounds = {"query": (0, q), "key": (q, q + k), "value": (q + k, q + 2 * k)}
    return (blocks, *bounds[role])


def _outside(
    name: str, layers: set[str], model: nn.Module, leaves: Callable[[nn.Module], Iterator[tuple[str, nn.Module]]]
) -> list[Target]:
    """Linears outside the stacks of layers (pooler, projections, language-model head), or tables, with that name."""
    starts = tuple(f"{path}." for path in layers)
    return [
        Target(named_site(model, path))
        for path, _ in leaves(model)
        if matches(path, name) and not path.startswith(starts) and path not in layers
    ]


def _convolutions(name: str, layers: Sequence[LayerMap] | None, model: nn.Module, where: str) -> list[Target]:
    """Convolutions with that name, in some layers or (None) anywhere."""
    paths = convolutions_named(name, model, where)
    starts = ("",) if layers is None else tuple(f"{layer.path}." for layer in layers)
    return [Target(named_site(model, path)) for path in paths if path.startswith(starts)]


def _parameters(name: str, layers: Sequence[LayerMap] | None, model: nn.Module) -> list[Target]:
    """Parameters of modules with that name, in some layers or (None) anywhere."""
    starts = ("",) if layers is None else tuple(f"{layer.path}." for layer in layers)
    return [Target(site) for site in parameters_named(name, model) if site.leaf.startswith(starts)]


def _no_match(name: str, method: str, arch: ArchitectureMap, model: nn.Module) -> AttachError:
    modules = list(dict.fromkeys(path.rpartition(".")[2] for path in arch.linears(model)))
    more = {"tables": table_leaves(model), "convolutions": convolution_leaves(model)}
    ends = {kind: list(dict.fromkeys(path.rpartition(".")[2] for path, _ in found)) for kind, found in more.items()}
    others = [end for found in ends.values() for end in found]
    have = {role for layer in arch.layers() for role, _ in _roles(layer)}
    roles = [role for role, parts in ROLES.items() if have.intersection(parts)]
    return AttachError(
        f"target_modules matched nothing for {name!r}",
        where=f"{method} on {arch.model_type}",
        got=repr(name),
        allowed=f"roles {', '.join(roles)}; linear modules {', '.join(modules)}; {ALL!r}"
        + "".join(f"; {kind} {', '.join(found)}" for kind, found in ends.items() if found),
        try_=did_you_mean(name, [*roles, *modules, *others, ALL])
        or f"target_modules={ALL!r}, or some of these names; hfadapt inspect MODEL shows them",
    )


def refuse_only_read(method: Method, site: Site, arch: ArchitectureMap, model: nn.Module) -> None:
    """Raise where torch reads the weight of a linear and never calls it, whether anything is run at attach or not.

    Raises:
        AttachError: it is the output projection of an ``nn.MultiheadAttention``, chosen by its name.
    """
    owner, _, leaf = site.leaf.rpartition(".")
    module = model.get_submodule(owner)
    stock = isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward
    if stock and leaf == "out_proj" and not site.optional:
        raise method.refuse(
            "torch reads the weight of this linear and never calls it, so that an update would never run",
            arch,
            got=f"{site.leaf}, of an nn.MultiheadAttention",
            allowed="linears that are called",
            try_=f"a longer name that leaves it out; or modules_to_save=({owner!r},), which trains it whole",
        )
