"""Linears, tables and convolutions chosen by their names, in a model of which nothing else is known."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from hfadapt import Site
from hfadapt.architecture import (
    CONVOLUTIONS,
    convolution_leaves,
    convolution_names,
    convolves_at_once,
    is_convolution,
    is_linear,
    is_table,
    linear_leaves,
    linear_sizes,
    place_in_list,
    table_leaves,
)
from hfadapt.errors import AttachError, did_you_mean

from .config import is_pattern
from .misfits import refuse_misfit, refuse_other_lookup

if TYPE_CHECKING:
    from hfadapt import ArchitectureMap, MethodConfig

logger = logging.getLogger(__name__)

__all__ = [
    "ALL",
    "POSITION_TABLES",
    "Target",
    "convolutions_named",
    "matches",
    "named_site",
    "parameter_site",
    "parameters_named",
    "refuse_other_tables",
    "targets_by_name",
    "warn_of_convolutions",
]

ALL = "all-linear"
# These project a table of positions that all rows of a batch share (DeBERTa): no row can have an update of its own.
POSITION_TABLES = ("pos_key_proj", "pos_query_proj", "pos_proj", "pos_q_proj")
# A linear outside the lists of layers belongs to no depth, so that AdapterDrop never reaches it.
OUTSIDE = 1 << 30
_SHOWN = 30


@dataclass(frozen=True)
class Target:
    """One linear (or the slice of a fused one) that gets an update.

    Args:
        site: The linear's output.
        part: What the slice of a fused linear makes (``query``), or "" for all of it.
    """

    site: Site
    part: str = ""


def matches(path: str, name: str) -> bool:
    """Say whether a module's path ends with a name, or is what a regular expression describes."""
    if is_pattern(name):
        return re.fullmatch(name, path) is not None
    return path == name or path.endswith("." + name)


def named_site(model: nn.Module, path: str, optional: bool = False) -> Site:
    """Return the output of a linear, a table or a convolution, whose place in the model nothing but its name says.

    Raises:
        AttachError: a table computes something else than its class's name says.
    """
    place, leaf = place_in_list(model, path), model.get_submodule(path)
    inputs, outputs = linear_sizes(leaf)
    stack, layer = ("", OUTSIDE) if place is None else place
    kernel: Any = leaf.kernel_size if is_convolution(leaf) else ()
    if is_table(leaf):
        refuse_other_lookup(leaf, path)
    return Site(
        "table" if is_table(leaf) else "convolution" if kernel else "linear",
        stack,
        layer,
        path,
        "convolution" if kernel and not convolves_at_once(leaf) else "output",
        outputs,
        reads_leaf_input=True,
        source_width=inputs,
        rows_known=False,
        optional=optional,
        window=tuple(kernel),
    )


def convolutions_named(name: str, model: nn.Module, where: str) -> list[str]:
    """Return the paths of convolutions that a name means, which it does where it is no linear's and no table's.

    So a name that adapters were saved with goes on meaning what it meant then.

    Raises:
        AttachError: one of them takes no update of low rank.
    """
    named = _of_kind(CONVOLUTIONS, name, model)
    for path, module in named:
        refuse_misfit(module, f"{where}: {path}")
    return [path for path, _ in named]


def refuse_other_tables(name: str, model: nn.Module, where: str) -> None:
    """Raise where a name that is no linear's means an ``nn.Embedding`` that does more than to look vectors up.

    Raises:
        AttachError: it does.
    """
    for path, module in _of_kind(nn.Embedding, name, model):
        refuse_misfit(module, f"{where}: {path}")


def warn_of_convolutions(name: str, model: nn.Module) -> None:
    """Say which convolutions a name leaves out because linears or tables have it too."""
    left = [path for path, _ in _of_kind(CONVOLUTIONS, name, model)]
    if left:
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        logger.warning("%r means the linears and tables of that name; name %s by its whole path", name, shown)


def _of_kind(kind: Any, name: str, model: nn.Module) -> list[tuple[str, nn.Module]]:
    named = [(path, module) for path, module in model.named_modules() if isinstance(module, kind)]
    return [(path, module) for path, module in named if matches(path, name) and not f".{path}".count(".hfadapt")]


def parameters_named(name: str, model: nn.Module) -> list[Site]:
    """Return the parameters that a name means, which modules read themselves: experts' matrices in one, a router's.

    It does so where it is no module's, so that a name goes on meaning what it meant.
    """
    found = []
    for path, module in model.named_modules():
        if not path or f".{path}".count(".hfadapt") or is_linear(module) or is_table(module):
            continue
        # torch's recurrent layers read a list of their weights that was made before, and a convolution has its own LoRA
        if isinstance(module, (*CONVOLUTIONS, nn.RNNBase)):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() in (2, 3) and parameter.is_floating_point() and matches(f"{path}.{own}", name):
                found.append(parameter_site(model, path, own, parameter))
    return found


def parameter_site(model: nn.Module, path: str, own: str, parameter: nn.Parameter) -> Site:
    """Return the place of the parameter ``own`` of the module at ``path``."""
    stack, layer = place_in_list(model, path) or ("", OUTSIDE)
    turned = parameter.dim() == 3 and getattr(model.get_submodule(path), "is_transposed", False)
    rows, columns = parameter.shape[-2:]
    outputs, inputs = (columns, rows) if turned else (rows, columns)
    stacked = parameter.shape[0] if parameter.dim() == 3 else 1
    return Site(
        "weights",
        stack,
        layer,
        path,
        "weights",
        outputs,
        source_width=inputs,
        rows_known=False,
        parameter=own,
        stacked=stacked,
    )


def targets_by_name(
    names: Sequence[str], config: MethodConfig, arch: ArchitectureMap, model: nn.Module
) -> list[Target]:
    """Return the linears that ``names`` mean in a model without a map, in the order of the model.

    ``"all-linear"`` means what it means with a map: every linear in the layers. In a model without lists of layers it
    is every linear but the ones that make the output, which are the output embeddings and a task head.

    Raises:
        AttachError: a name matches nothing, or ``layers`` or ``stack`` say what only a map knows.
    """
    where = f"{config.method} on {arch.model_type}"
    if config.stack != "all":
        raise AttachError(
            "stacks are told by a map, and this model has none",
            where=where,
            got=f"stack={config.stack!r}",
            allowed="stack='all'",
            try_=_ways_out(arch),
        )
    leaves = [path for path, _ in linear_leaves(model)]
    tables = [path for path, _ in table_leaves(model)]
    convolutions = [path for path, _ in convolution_leaves(model)]
    chosen = _chosen_layers(config, arch, [*leaves, *tables, *convolutions], model, where)
    heads = _heads(model)
    found: dict[str, Target] = {}
    parameters: dict[tuple[str, str], Target] = {}
    for name in names:
        if name == ALL:
            hits = [p for p in leaves if not p.startswith(heads) and p.rpartition(".")[2] not in POSITION_TABLES]
            hits = [path for path in hits if place_in_list(model, path)] or hits
        else:
            hits = [path for path in leaves if matches(path, name)]
            if not hits:
                refuse_other_tables(name, model, where)
            hits += [path for path in tables if matches(path, name)]
            if hits:
                warn_of_convolutions(name, model)
            hits = hits or convolutions_named(name, model, where)
        hits = [path for path in hits if chosen is None or path in chosen]
        if not hits and name != ALL:
            sites = parameters_named(name, model)
            sites = [s for s in sites if config.layers == "all" or s.layer in _numbers(config, arch).get(s.stack, ())]
            parameters.update({(s.leaf, s.parameter): Target(s) for s in sites})
            if sites:
                continue
        if not hits and not leaves:
            raise _no_linears(name, model, where, {"convolutions": convolutions, "tables": tables})
        if not hits:
            raise _no_match(name, where, arch, leaves, {"tables": tables, "convolutions": convolutions}, config)
        found.update({path: Target(named_site(model, path, name == ALL)) for path in hits if path not in found})
    return [found[path] for path in (*tables, *leaves, *convolutions) if path in found] + list(parameters.values())


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the paths of what makes the output."""
    from hfadapt.adapters.formats import head_modules

    model_: Any = model
    embeddings = model_.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    paths = [path for path, module in model.named_modules() if module is embeddings and embeddings is not None]
    return tuple(f"{path}." for path in (*paths, *head_modules(model_))) + tuple(paths)


def _chosen_layers(
    config: MethodConfig, arch: ArchitectureMap, paths: Sequence[str], model: nn.Module, where: str
) -> set[str] | None:
    """Return the modules in the layers that the config chooses, by the numbers in their paths; None for all."""
    if config.layers == "all":
        return None
    numbers = _numbers(config, arch)
    if not isinstance(config.layers, str):
        bad = [i for i in config.layers if not any(-n <= int(i) < n for n in arch.depths.values())]
        if bad:
            allowed = "; ".join(f"{path}: 0 to {n - 1}" for path, n in arch.depths.items()) or "none: no list of layers"
            deepest = max(arch.depths.values(), default=0)
            cure = f"layers=({deepest - 1},), the last of them" if deepest else "layers='all'"
            raise AttachError("layer out of range", where=where, got=bad, allowed=allowed, try_=cure)
    places = {path: place_in_list(model, path) for path in paths}
    return {path for path, place in places.items() if place is not None and place[1] in numbers.get(place[0], ())}


def _numbers(config: MethodConfig, arch: ArchitectureMap) -> dict[str, set[int]]:
    """Return which entries of each list of modules the config chooses."""
    numbers: dict[str, set[int]] = {}
    for stack, count in arch.depths.items():
        if config.layers == "first_half":
            numbers[stack] = set(range(count // 2))
        elif config.layers == "final_half":
            numbers[stack] = set(range(count - count // 2, count))
        else:
            numbers[stack] = {int(i) % count for i in config.layers if -count <= int(i) < count}
    return numbers


def _no_match(
    name: str,
    where: str,
    arch: ArchitectureMap,
    linears: Sequence[str],
    others: Mapping[str, Sequence[str]],
    config: MethodConfig,
) -> AttachError:
    modules = _ends(linears)
    more = {kind: _ends(paths) for kind, paths in others.items() if paths}
    near = did_you_mean(name, [*modules, *(end for ends in more.values() for end in ends), ALL])
    if name == ALL and config.layers == "all":
        near = f"names of modules: every linear is in what makes the output, which {ALL!r} leaves out."
    shown = ", ".join(modules[:_SHOWN]) + (", ..." if len(modules) > _SHOWN else "")
    hint = f" in layers={config.layers!r}" if config.layers != "all" else ""
    return AttachError(
        f"target_modules matched nothing for {name!r}{hint}",
        where=where,
        got=f"no map of the model, so that names of modules count and roles do not ({arch.unmapped})"
        if arch.unmapped
        else None,
        allowed=f"linear modules {shown}; "
        + "".join(f"{kind} {', '.join(ends[:_SHOWN])}; " for kind, ends in more.items())
        + f"a regular expression for whole paths; {ALL!r}",
        try_=f"{near} {_ways_out(arch)}".strip() if arch.unmapped else near or f"target_modules={ALL!r}",
    )


def _ends(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, each once."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def _no_linears(name: str, model: nn.Module, where: str, others: Mapping[str, Sequence[str]]) -> AttachError:
    kinds = Counter(type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    ends = {kind: _ends(paths) for kind, paths in others.items() if paths}
    working = (convolution_names(model) or [path for paths in others.values() for path in paths])[:_SHOWN]
    return AttachError(
        f"the model has no linears, and nothing else that takes an update of low rank is meant by {name!r}",
        where=where,
        got=", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4)),
        allowed="; ".join(f"names of {kind}: {', '.join(found[:_SHOWN])}" for kind, found in ends.items())
        or "a model with linears, tables of vectors, or convolutions that mix all their channels (groups=1)",
        try_=f"target_modules={tuple(working)!r}"
        if working
        else "heads on the frozen model (hfadapt.MultiTaskModel), or modules_to_save for the last blocks",
    )


def _ways_out(arch: ArchitectureMap) -> str:
    return (
        f"lora with target_modules={ALL!r} or names of modules; the inner language model alone; or "
        "attach(..., arch=...) with a map by hfadapt.probe(model, inputs={...}) or by hand "
        "(docs/map-an-architecture.md)"
    )
