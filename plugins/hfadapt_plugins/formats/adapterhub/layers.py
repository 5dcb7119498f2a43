"""Where AdapterHub keeps the parts of a layer, in the terms of an architecture map."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hfadapt.architecture import LayerMap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hfadapt import ArchitectureMap

__all__ = ["numbers", "split_layers", "sublayer_of"]

_T5_PART = re.compile(r"layer\.(\d+)")


def numbers(arch: ArchitectureMap) -> dict[tuple[str, int], int]:
    """Return AdapterHub's number of each layer: a decoder's follow those of its encoder."""
    found: dict[tuple[str, int], int] = {}
    for stack in sorted(arch.stacks, key=lambda one: one.kind == "decoder"):
        for index in range(stack.num_layers):
            found[(stack.path, index)] = len(found)
    return found


def sublayer_of(rest: str, layer: LayerMap) -> str:
    """Return the sub-layer that a module inside a layer belongs to: ``"attention"``, ``"cross"`` or ``"ffn"``.

    Args:
        rest: Path from the layer: ``attention.output``, ``output_adapters``, ``layer.1`` (T5's parts are numbered).
        layer: The layer.
    """
    part = _T5_PART.fullmatch(rest)
    if part is not None:
        last = 1 if layer.cross_attention is None else 2
        return {0: "attention", last: "ffn"}.get(int(part[1]), "cross")
    if "cross" in rest:
        return "cross"
    return "attention" if "attention" in rest else "ffn"


def split_layers(arch: ArchitectureMap, chosen: Iterable[tuple[str, int]]) -> list[tuple[str, str | tuple[int, ...]]]:
    """Return what of ``MethodConfig`` chooses these layers: its ``stack`` and ``layers``, once or for each stack.

    Args:
        arch: The model's map.
        chosen: Path of a stack, and a layer's number in it.
    """
    wanted: dict[str, list[int]] = {}
    for path, index in chosen:
        wanted.setdefault(path, []).append(index)
    full = {stack.path: stack.num_layers for stack in arch.stacks}
    if all(len(wanted.get(path, ())) == count for path, count in full.items()):
        return [("all", "all")]
    found: list[tuple[str, str | tuple[int, ...]]] = []
    for stack in arch.stacks:
        indices = sorted(wanted.get(stack.path, ()))
        if indices:
            kind = "all" if len(full) == 1 else "decoder" if stack.kind == "decoder" else "encoder"
            found.append((kind, "all" if len(indices) == stack.num_layers else tuple(indices)))
    return found
