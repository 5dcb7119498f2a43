"""Which module lists of a model are stacks of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..linears import is_linear

if TYPE_CHECKING:
    from collections.abc import Mapping

_FEWEST_LINEARS = 3
_SHOWN = 3


def layer_lists(model: nn.Module, fewest: int = _FEWEST_LINEARS) -> dict[str, nn.ModuleList | nn.Sequential]:
    """Module lists whose members are of one class and hold linears, the innermost whole ones.

    At least `fewest` in each; where a model has no such list, fewer (state spaces, mixing without weights). Sequences
    of such layers (CvT's) are lists too.

    Where a list's members hold all their linears in a list of their own (ALBERT's groups of layers), the inner one
    counts; where they hold only a part of them there (T5's sub-layers), the outer one does.
    """
    return _lists(model, fewest) or _lists(model, 1)


def inner_lists(
    model: nn.Module, outer: Mapping[str, nn.ModuleList | nn.Sequential]
) -> dict[str, nn.ModuleList | nn.Sequential]:
    """The lists inside the members of others, for stages that do not run like layers (LeViT's); {} for none.

    Lists whose members hold none are among them: the text layers beside a tower of stages (CLAP).

    Args:
        model: Any.
        outer: By their paths.
    """
    starts = tuple(f"{path}." for path in outer)
    named = {name: one for name, one in model.named_modules() if isinstance(one, nn.ModuleList) and _count(one)}
    inside = [name for name in named if name.startswith(starts)]
    inside = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
    if not inside:
        return {}
    without = {path for path in outer if not any(name.startswith(f"{path}.") for name in inside)}
    both = {name: outer.get(name, named.get(name)) for name, _ in model.named_modules()}
    return {name: one for name, one in both.items() if one is not None and (name in inside or name in without)}


def without_linears(model: nn.Module) -> str:
    """Say which lists hold no linears, so that none of their members is a layer that the probe knows; "" for none."""
    lists = {
        name: type(module[0]).__name__
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not _count(module)
    }
    outer = [f"{name} ({kind})" for name, kind in lists.items() if not any(name.startswith(f"{one}.") for one in lists)]
    return f"; no linears in {', '.join(outer[:_SHOWN])}" if outer else ""


def _lists(model: nn.Module, fewest: int) -> dict[str, nn.ModuleList | nn.Sequential]:
    named: list[tuple[str, nn.ModuleList | nn.Sequential]]
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    named = [(name, module) for name, module in named if all(isinstance(one, nn.Module) for one in module)]
    named += [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential) and len(module) and _count(module[0]) >= _FEWEST_LINEARS
    ]
    lists: dict[str, nn.ModuleList | nn.Sequential]
    lists = {
        name: module
        for name, module in named
        if len({type(member) for member in module}) == 1 and _count(module[0]) >= fewest
    } | {
        # Layers of several classes (attention and state spaces); such a list inside a layer holds its sub-layers.
        name: module
        for name, module in named
        if outermost_list(model, name) == name
        and len({type(member) for member in module}) > 1
        and max(map(_count, module), default=0) >= fewest
        and min(map(_count, module), default=0) > 0
    }

    def inner(name: str) -> list[str]:
        return [other for other in lists if other.startswith(name + ".")]

    whole = {name for name in lists if sum(_count(lists[other]) for other in inner(name)) >= _count(lists[name])}
    kept = [name for name in lists if name not in whole]
    return {name: lists[name] for name in kept if not any(name.startswith(other + ".") for other in kept)}


def _count(module: nn.Module) -> int:
    return sum(is_linear(leaf) for leaf in module.modules())


def outermost_list(model: nn.Module, path: str) -> str:
    """The first module list on the way to `path`."""
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        if isinstance(model.get_submodule(name), nn.ModuleList):
            return name
    return path


def first_tensor(values: object) -> torch.Tensor | None:
    """The first floating point tensor in a nest of tuples, lists and dicts."""
    if isinstance(values, torch.Tensor):
        return values if values.is_floating_point() else None
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, (tuple, list)):
        return next((found for value in values if (found := first_tensor(value)) is not None), None)
    return None
