"""Linears chosen by their names, in a model of which nothing else is known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfadapt import Site
from hfadapt.architecture import is_table, linear_leaves, linear_sizes, place_in_list, table_leaves
from hfadapt.errors import AttachError, did_you_mean

from .config import is_pattern

if TYPE_CHECKING:
    from torch import nn

    from hfadapt import ArchitectureMap, MethodConfig

__all__ = ["ALL", "POSITION_TABLES", "Target", "matches", "named_site", "targets_by_name"]

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
    """Return the output of a linear, or of a table, whose place in the model nothing but its name says."""
    place, leaf = place_in_list(model, path), model.get_submodule(path)
    inputs, outputs = linear_sizes(leaf)
    stack, layer = ("", OUTSIDE) if place is None else place
    return Site(
        "table" if is_table(leaf) else "linear",
        stack,
        layer,
        path,
        "output",
        outputs,
        reads_leaf_input=True,
        source_width=inputs,
        rows_known=False,
        optional=optional,
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
            try_=_ways_out(arch),
        )
    leaves = [(path, named_site(model, path)) for path, _ in linear_leaves(model)]
    tables = [(path, named_site(model, path)) for path, _ in table_leaves(model)]
    chosen = _chosen_layers(config, arch, [site for _, site in leaves], where)
    heads = _heads(model)
    found: dict[str, Target] = {}
    for name in names:
        if name == ALL:
            hits = [p for p, _ in leaves if not p.startswith(heads) and p.rpartition(".")[2] not in POSITION_TABLES]
            hits = [path for path in hits if place_in_list(model, path)] or hits
        else:
            hits = [path for path, _ in (*leaves, *tables) if matches(path, name)]
        hits = [path for path in hits if chosen is None or path in chosen]
        if not leaves:
            raise _no_linears(model, where)
        if not hits:
            raise _no_match(name, where, arch, [path for path, _ in leaves], config)
        found.update({path: Target(named_site(model, path, name == ALL)) for path in hits if path not in found})
    return [found[path] for path, _ in (*tables, *leaves) if path in found]


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the paths of what makes the output."""
    from hfadapt.adapters.formats import head_modules

    model_: Any = model
    embeddings = model_.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    paths = [path for path, module in model.named_modules() if module is embeddings and embeddings is not None]
    return tuple(f"{path}." for path in (*paths, *head_modules(model_))) + tuple(paths)


def _chosen_layers(config: MethodConfig, arch: ArchitectureMap, sites: list[Site], where: str) -> set[str] | None:
    """Return the linears in the layers that the config chooses, by the numbers in their paths; None for all."""
    if config.layers == "all":
        return None
    numbers: dict[str, set[int]] = {}
    for stack, count in arch.depths.items():
        if config.layers == "first_half":
            numbers[stack] = set(range(count // 2))
        elif config.layers == "final_half":
            numbers[stack] = set(range(count - count // 2, count))
        else:
            numbers[stack] = {int(i) % count for i in config.layers if -count <= int(i) < count}
    if not isinstance(config.layers, str):
        bad = [i for i in config.layers if not any(-n <= int(i) < n for n in arch.depths.values())]
        if bad:
            allowed = "; ".join(f"{path}: 0 to {n - 1}" for path, n in arch.depths.items()) or "none: no list of layers"
            raise AttachError("layer out of range", where=where, got=bad, allowed=allowed)
    return {site.leaf for site in sites if site.layer in numbers.get(site.stack, ())}


def _no_match(name: str, where: str, arch: ArchitectureMap, paths: Sequence[str], config: MethodConfig) -> AttachError:
    modules = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    near = did_you_mean(name, [*modules, ALL])
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
        allowed=f"linear modules {shown}; a regular expression for whole paths; {ALL!r}" if modules else "no linears",
        try_=f"{near} {_ways_out(arch)}".strip() if arch.unmapped else near or f"target_modules={ALL!r}",
    )


def _no_linears(model: nn.Module, where: str) -> AttachError:
    kinds = Counter(type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    return AttachError(
        "the model has no linears, and updates of low rank are for linears",
        where=where,
        got=", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4)),
        allowed="a model with linears; convolutions and embeddings take no LoRA here",
        try_="heads on the frozen model (hfadapt.MultiTaskModel), or modules_to_save for the last blocks",
    )


def _ways_out(arch: ArchitectureMap) -> str:
    return (
        f"lora with target_modules={ALL!r} or names of modules; the inner language model alone; or "
        "attach(..., arch=...) with a map by hfadapt.probe(model, inputs={...}) or by hand "
        "(docs/map-an-architecture.md)"
    )
