"""What can be said of any model without running it: where its linears are, and the lists of layers they stand in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from .linears import CONVOLUTIONS, is_convolution, is_linear, is_table
from .maps import ArchitectureMap

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["convolution_leaves", "convolution_names", "linear_leaves", "place_in_list", "structure", "table_leaves"]


def structure(model: nn.Module, unmapped: str = "") -> ArchitectureMap:
    """Return a map without stacks: enough for methods that choose modules by name.

    Args:
        model: Any module.
        unmapped: Why there are no stacks; "" where nobody asked for them.
    """
    model_type = str(getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__)
    lists: dict[str, int] = {}
    for path, _ in (*linear_leaves(model), *convolution_leaves(model)):
        found = place_in_list(model, path)
        if found is not None:
            lists.setdefault(found[0], len(list(model.get_submodule(found[0]).children())))
    return ArchitectureMap(model_type, (), attention_interface=False, source="names", lists=lists, unmapped=unmapped)


def linear_leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path of every linear of a model, and the linear; those that adapters brought are left out."""
    for path, module in model.named_modules():
        if path and not f".{path}".count(".hfadapt") and is_linear(module):
            yield path, module


def table_leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path of every table of vectors that takes an update, and the table.

    In layers, which hold linears too, tables are of positions (T5's), and left out; a list of tables is none of layers.
    """
    for path, module in model.named_modules():
        if path and not f".{path}".count(".hfadapt") and is_table(module) and not _in_a_layer(model, path):
            yield path, module


def _in_a_layer(model: nn.Module, path: str) -> bool:
    place = _first_of(model, path.split("."), nn.ModuleList)
    return place is not None and any(map(is_linear, model.get_submodule(f"{place[0]}.{place[1]}").modules()))


def convolution_leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path of every convolution that takes an update, and the convolution."""
    for path, module in model.named_modules():
        if path and not f".{path}".count(".hfadapt") and is_convolution(module):
            yield path, module


def convolution_names(model: nn.Module) -> list[str]:
    """Return the shortest ends of paths that mean all convolutions of a model that take an update, and nothing else.

    Args:
        model: Any; in a mobile net, say, names leave out the convolutions of single channels.
    """
    fit = [path for path, _ in convolution_leaves(model)]
    others = {
        f".{path}"
        for path, module in model.named_modules()
        if (isinstance(module, CONVOLUTIONS) or is_linear(module) or isinstance(module, nn.Embedding))
        and path not in fit
    }
    names: dict[str, None] = {}
    for path in fit:
        parts = path.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        end = next((one for one in ends if not any(other.endswith(f".{one}") for other in others)), None)
        if end is not None:
            names[end] = None
    return list(names)


def place_in_list(model: nn.Module, path: str) -> tuple[str, int] | None:
    """Return the outermost list that a module stands in, and its number there; None where it stands in none.

    A list is an ``nn.ModuleList``; in a path without one, an ``nn.Sequential``.
    """
    parts = path.split(".")
    for kind in (nn.ModuleList, nn.Sequential):
        found = _first_of(model, parts, kind)
        if found is not None:
            return found
    return None


def _first_of(model: nn.Module, parts: Sequence[str], kind: type[nn.Module]) -> tuple[str, int] | None:
    module = model
    for place, part in enumerate(parts):
        if isinstance(module, kind) and part.isdigit():
            return ".".join(parts[:place]), int(part)
        module = module.get_submodule(part)
    return None
