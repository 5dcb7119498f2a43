"""Whether all layers of a stack are made like the one that was mapped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from ..linears import is_linear, linear_sizes
from ..maps import AttentionMap, join
from .replay import is_norm

if TYPE_CHECKING:
    from torch import nn


def linears_of(attentions: Iterable[AttentionMap | None], ffn: Iterable[str | None]) -> list[str]:
    """Paths of the mapped linears, relative to the layer."""
    names = ("query", "key", "value", "fused", "output", "reads")
    known = [one for one in attentions if one is not None]
    paths = [getattr(one, name) for one in known for name in names]
    paths += [path for one in known for _, path, _ in one.inside]
    return list(dict.fromkeys(path for path in (*paths, *ffn) if path))


def _sizes(module: nn.Module) -> tuple[int, int] | str:
    """The sizes of a linear, or the class of a block that does the work of several."""
    return linear_sizes(module) if is_linear(module) else type(module).__name__


def kinds_of(root: nn.Module, layers: Sequence[str], fired: Collection[str]) -> list[list[int]]:
    """The numbers of layers that are made alike, kind by kind.

    Args:
        root: The model.
        layers: Paths of the layer modules, in the order they run.
        fired: Paths of the modules that ran.
    """
    kinds: dict[object, list[int]] = {}
    known: dict[str, object] = {}
    for index, path in enumerate(layers):
        if path not in known:
            modules = root.get_submodule(path).named_modules()
            known[path] = tuple(
                (name, _sizes(module), join(path, name) in fired)
                for name, module in modules
                if is_linear(module) or is_norm(name, module) or any(True for _ in module.parameters(recurse=False))
            )
        kinds.setdefault(known[path], []).append(index)
    return list(kinds.values())


def differences(
    mapped: nn.Module,
    root: nn.Module,
    layers: Sequence[str],
    linears: Sequence[str],
    norms: Collection[str],
    fired: Collection[str] | None = None,
) -> list[str]:
    """What the mapped layer has and another one lacks, has in another size, or does not run.

    Args:
        mapped: The layer that was mapped.
        root: The model.
        layers: Paths of the layer modules.
        linears, norms: Paths relative to a layer.
        fired: Paths of the modules that ran; not looked at when None.
    """
    count = sum(map(is_linear, mapped.modules()))
    found = []
    for path in dict.fromkeys(layers):
        present = dict(root.get_submodule(path).named_modules())
        for name in (*linears, *norms):
            module = present.get(name)
            if module is None or (fired is not None and join(path, name) not in fired):
                found.append(f"{join(path, name)}, which the mapped layer has")
            elif name in linears and _sizes(module) != _sizes(mapped.get_submodule(name)):
                found.append(f"{join(path, name)} of the mapped layer's size")
        if sum(map(is_linear, present.values())) != count:
            found.append(f"as many linears in {path} as in the mapped layer")
    return found
