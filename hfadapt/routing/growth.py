"""How the batch of a forward pass grows where a ``Parallel`` begins: every row is repeated once a child."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

__all__ = ["Growth", "Reach", "copies", "repeat_rows"]

# Tables that are the same for all rows, whatever the size of their first axis.
_NOT_BATCHED = ("rel_embeddings", "relative_pos")


@dataclass(frozen=True)
class Reach:
    """Where what a row goes through begins to differ from the base.

    Args:
        layers: By stack, the layers at which it has deltas; -1 is before the first one.
        below: It has something below all layers, such as a copy of the embeddings.
    """

    layers: Mapping[str, tuple[int, ...]]
    below: bool = False


@dataclass
class Growth:
    """How the batch of one forward pass grows; all routings of the pass share it.

    Args:
        size: Rows before.
        children: How many times the rows are repeated.
        first: By stack, the layer at whose input they are; the number of layers stands for the last layer's output.
        at_root: Repeat the model's own arguments instead: behind its layers the model looks at its input again.
        grown: Whether it has happened in any stack.
        repeated: What was repeated, by identity: every layer is given the same masks.
        trunk: What the layers below gave an earlier piece of the same call, by stack and number; None where there are
            no pieces.
    """

    size: int
    children: int
    first: Mapping[str, int]
    at_root: bool = False
    grown: bool = False
    repeated: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    trunk: dict[tuple[str, int], Any] | None = None

    @property
    def rows(self) -> int:
        """Rows after."""
        return self.size * self.children

    def repeat(self, value: Any) -> Any:
        """Repeat the rows of whatever has them; see `repeat_rows`."""
        return repeat_rows(value, self.size, self._repeat_once)

    def _repeat_once(self, tensor: Tensor) -> Tensor:
        known = self.repeated.get(id(tensor))
        if known is None or known[0] is not tensor:
            known = self.repeated[id(tensor)] = (tensor, copies(tensor, self.children))
        return known[1]

    def repeat_call(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Repeat the arguments of a module."""
        self.grown = True
        return self.repeat(args), {k: v if k in _NOT_BATCHED else self.repeat(v) for k, v in kwargs.items()}


def copies(tensor: Tensor, children: int) -> Tensor:
    """Repeat the rows ``[B, ...]`` of a tensor once a child, children outermost."""
    return tensor.repeat(children, *(1,) * (tensor.dim() - 1))


def repeat_rows(value: Any, rows: int, repeat: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``repeat`` to a tensor ``[rows, ...]`` of two axes or more, or to those in a tuple, list, map or output.

    Anything else is returned as it is.
    """
    if isinstance(value, Tensor):
        return repeat(value) if value.dim() > 1 and value.shape[0] == rows else value
    if isinstance(value, ModelOutput):  # an encoder's states
        return type(value)(**{k: repeat_rows(v, rows, repeat) for k, v in value.items()})
    if type(value) in (tuple, list):
        return type(value)(repeat_rows(one, rows, repeat) for one in value)
    return {k: repeat_rows(v, rows, repeat) for k, v in value.items()} if type(value) is dict else value
