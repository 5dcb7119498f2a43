"""Tables that all rows share (DeBERTa's relative positions), projected by linears that adapters change.

Where the projections of a layer also serve its position table, ``[1, S, D]`` for a whole batch, an adapter of those
projections gives every row a table of its own adapter's. The stock code has room for one, so that what it computes from
the table is run once for each adapter in the batch, and every row takes its own adapter's result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..architecture import join
from ..routing.context import current, use_routing
from ..routing.routing import all_tasks_take_part

if TYPE_CHECKING:
    from ..architecture import ArchitectureMap

__all__ = ["OncePerAdapter", "install", "uninstall"]


class OncePerAdapter:
    """Stands in for a method of ``module`` that reads a table which all rows share.

    An object and not a closure, so that ``deepcopy`` and pickle take it along with its module.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the method for each adapter of the batch; the result's first axis is B, or B times the heads."""
        method = getattr(type(self.module), self.name)
        routing = current()
        if routing is None or routing.ids is None:
            return method(self.module, *args, **kwargs)
        listed = None if all_tasks_take_part() else routing.id_list
        out: Tensor | None = None
        for number in range(-1, len(routing.names)) if listed is None else sorted(set(listed)):
            with use_routing(routing.for_all(number)):
                one = method(self.module, *args, **kwargs)
            mine = (routing.ids == number).repeat_interleave(one.shape[0] // routing.batch_size)
            out = one if out is None else torch.where(mine.view(-1, *(1,) * (one.dim() - 1)), one, out)
        assert out is not None
        return out


def install(model: nn.Module, arch: ArchitectureMap) -> None:
    """Put `OncePerAdapter` before the methods that the map names."""
    for module, name in _methods(model, arch):
        module.__dict__[name] = OncePerAdapter(module, name)


def uninstall(model: nn.Module, arch: ArchitectureMap) -> None:
    """Take it away again."""
    for module, name in _methods(model, arch):
        module.__dict__.pop(name, None)


def _methods(model: nn.Module, arch: ArchitectureMap) -> Iterator[tuple[nn.Module, str]]:
    for stack in arch.stacks:
        attention = stack.attention
        if attention is None or not stack.reads_shared_table:
            continue
        for path in dict.fromkeys(stack.layer_paths):
            yield model.get_submodule(join(path, attention.module)), stack.reads_shared_table
