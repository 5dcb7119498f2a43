"""The passes over the deltas of a place: each row its own adapter, or a mix of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from . import composition
from .composition import Node, steps_of
from .lookup import looked_up

if TYPE_CHECKING:
    from hfadapt_kernels import TaskBatch

__all__ = ["Arrow", "Average", "Fuse", "Route", "Select", "Step", "plan", "top_weights"]

Run = Callable[[tuple[str, ...], "TaskBatch"], Tensor]


class RowsOfPass(Protocol):
    """What a step asks of the routing of a forward pass, which is `Routing`: the rows of the batch that it is for."""

    def rows(
        self, index: int, available: tuple[str, ...], device: torch.device
    ) -> tuple[tuple[str, ...], TaskBatch] | None: ...

    def together(self, index: int, device: torch.device) -> TaskBatch: ...

    def members(self, index: int, device: torch.device, size: int | None = None) -> Tensor | None: ...

    def shares(self, index: int, size: int) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """One pass over every slot.

    Args:
        names: The adapters that take part.
        table: For each routable id, its index into ``names`` (`Select`) or 0 (the others); -1 is not in this step.
    """

    names: tuple[str, ...]
    table: tuple[int, ...]

    def local(self, task: int) -> int:
        """Return the entry of a routable id; -1 for a row without an adapter, whose id is -1."""
        return self.table[task] if task >= 0 else -1

    def lookup(self, ids: Tensor, entries: Sequence[int]) -> Tensor:
        """Return the entry of each row.

        Args:
            ids: int64 ``[B]``, a routable id a row, or -1.
            entries: One for each routable id; rows of -1 get -1.
        """
        return looked_up(ids, entries)

    def used(self, tasks: set[int]) -> tuple[str, ...]:
        """Return the adapters that rows with these ids use."""
        return self.names if any(self.local(task) >= 0 for task in tasks) else ()

    def apply(
        self,
        routing: RowsOfPass,
        index: int,
        device: torch.device,
        available: tuple[str, ...],
        unchanged: Callable[[], Tensor],
        run: Run,
    ) -> Tensor:
        """Return what the deltas at one place make of its tensor.

        Args:
            routing: Of the forward pass.
            index: Of this step among the routing's.
            device: Of the tensor.
            available: The adapters that have parameters at the place.
            unchanged: Gives the tensor without this step, ``[B, ...]`` or ``[B * T, ...]``.
            run: Gives the tensor changed by some adapters, each on the rows that have it in the batch.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Select(Step):
    """Each row uses one adapter."""

    def used(self, tasks: set[int]) -> tuple[str, ...]:
        return tuple(self.names[i] for i in sorted({self.local(task) for task in tasks} - {-1}))

    def apply(
        self,
        routing: RowsOfPass,
        index: int,
        device: torch.device,
        available: tuple[str, ...],
        unchanged: Callable[[], Tensor],
        run: Run,
    ) -> Tensor:
        found = routing.rows(index, available, device)
        return unchanged() if found is None else run(*found)


@dataclass(frozen=True)
class Average(Step):
    """Rows use a weighted mean of effects: ``v + sum_i w_i (a_i(v) - v)``.

    Args:
        weights: One for each of ``names``.
    """

    weights: tuple[float, ...]

    def apply(
        self,
        routing: RowsOfPass,
        index: int,
        device: torch.device,
        available: tuple[str, ...],
        unchanged: Callable[[], Tensor],
        run: Run,
    ) -> Tensor:
        value = unchanged()
        shares = [(name, w) for name, w in zip(self.names, self.weights, strict=True) if name in available]
        if not shares:
            return value
        batch = routing.together(index, device)
        effects = torch.zeros_like(value)
        for name, weight in shares:
            effects = effects + weight * (run((name,), batch) - value)
        return _inside(routing, index, value, value + effects)


@dataclass(frozen=True)
class Route(Step):
    """Rows use several of ``names``, weighed by a layer that read the row: see `composition.Router`.

    Args:
        key: Under which the layer is kept.
        top_k: How many.
    """

    key: str
    top_k: int

    def apply(
        self,
        routing: RowsOfPass,
        index: int,
        device: torch.device,
        available: tuple[str, ...],
        unchanged: Callable[[], Tensor],
        run: Run,
    ) -> Tensor:
        value = unchanged()
        here = [(number, name) for number, name in enumerate(self.names) if name in available]
        if not here:
            return value
        batch = routing.together(index, device)
        shares = routing.shares(index, value.shape[0]).to(value.dtype)
        effects = torch.zeros_like(value)
        for number, name in here:
            share = shares[:, number].view(-1, *(1,) * (value.dim() - 1))
            effect = share * (run((name,), batch) - value)
            # What an adapter makes of rows that did not choose it is nobody's, infinite numbers included.
            effects = effects + torch.where(share != 0, effect, torch.zeros_like(effect))
        return _inside(routing, index, value, value + effects)


@dataclass(frozen=True)
class Fuse(Step):
    """Rows use AdapterFusion over ``names``.

    Args:
        key: Under which the node's fusion layers are kept.
    """

    key: str

    def apply(
        self,
        routing: RowsOfPass,
        index: int,
        device: torch.device,
        available: tuple[str, ...],
        unchanged: Callable[[], Tensor],
        run: Run,
    ) -> Tensor:
        """Change nothing: a fusion layer serves all deltas of a place together, and this one has none."""
        return unchanged()


@dataclass(frozen=True)
class Arrow(Step):
    """Tokens use several of ``names`` at every linear, weighed by what the linear reads: see `composition.Arrow`.

    Args:
        top_k: How many.
        temperature: Of the softmax.
    """

    top_k: int
    temperature: float

    def weigh(self, scores: Tensor) -> Tensor:
        """Return the weight of each adapter for each token, ``[..., N]``: they sum to 1, and 0 is not chosen.

        Args:
            scores: ``[..., N]``, how far what each token gives the linear points along each prototype.
        """
        return top_weights(scores / self.temperature, self.top_k)

    def apply(
        self,
        routing: RowsOfPass,
        index: int,
        device: torch.device,
        available: tuple[str, ...],
        unchanged: Callable[[], Tensor],
        run: Run,
    ) -> Tensor:
        """Change nothing: the deltas of a linear are weighed together, and this place has none that could be."""
        return unchanged()


def _inside(routing: RowsOfPass, index: int, value: Tensor, changed: Tensor) -> Tensor:
    """Return ``changed`` in the rows of a step and ``value`` in the others."""
    inside = routing.members(index, value.device, value.shape[0])
    if inside is None:
        return changed
    # Chosen and not multiplied by zero: rows outside keep their bits, whatever stands in the others.
    return torch.where(inside.view(-1, *(1,) * (value.dim() - 1)), changed, value)


def top_weights(scores: Tensor, top_k: int) -> Tensor:
    """Return the softmax over the ``top_k`` highest of the last axis ``[..., N]``, and 0 for the others."""
    if top_k >= scores.shape[-1]:
        return torch.softmax(scores, -1)
    best, which = scores.topk(top_k, -1)
    return torch.zeros_like(scores).scatter(-1, which, torch.softmax(best, -1))


def plan(setups: Sequence[Node]) -> tuple[Step, ...]:
    """Turn the compositions of all routable names into steps that a slot runs one after another.

    Args:
        setups: The composition of each routable id, in order.
    """
    trees = [steps_of(setup) for setup in setups]
    steps: list[Step] = []
    for depth in range(max((len(t) for t in trees), default=0)):
        nodes = [t[depth] if depth < len(t) else None for t in trees]
        names = tuple(dict.fromkeys(n for n in nodes if isinstance(n, str)))
        if names:
            index = {name: i for i, name in enumerate(names)}
            steps.append(Select(names, tuple(index[n] if isinstance(n, str) else -1 for n in nodes)))
        for node in dict.fromkeys(n for n in nodes if isinstance(n, composition.Composition)):
            children, table = tuple(str(c) for c in node.children), tuple(0 if n == node else -1 for n in nodes)
            if isinstance(node, composition.Average):
                steps.append(Average(children, table, node.weights))
            elif isinstance(node, composition.Arrow):
                steps.append(Arrow(children, table, node.top_k, node.temperature))
            elif isinstance(node, composition.Router):
                steps.append(Route(children, table, node.key, node.top_k))
            elif isinstance(node, composition.Fuse):
                steps.append(Fuse(children, table, node.key))
    return tuple(steps)
