"""Updates of a module's own parameters, such as the stacked matrices of experts, chosen row by row.

Such a parameter is read inside the module's ``forward``, where no hook comes by. So the module gets an instance
``forward`` that runs the stock one with other weights: those of the base, plus the updates of all adapters that a row
uses. Rows of several adapters run once for each; every run computes all rows, and each row takes its own, so that the
sums of a row do not depend on how many others use the same adapter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt_kernels import TaskBatch

from ..architecture.replaced import is_class_own
from ..errors import AttachError, RoutingError
from ..method.delta import Delta
from ..routing import all_tasks_take_part
from ..routing.context import current
from ..routing.routing import Routing, Rows
from ..routing.steps import Average, Select
from .leaf_hooks import tensor_batch_size
from .slot import applies, rows_unknown, slot_of

__all__ = ["UpdatedForward", "take_updates", "update_weights"]

# What some rows add to the weights: each adapter's share, by the step that it is in.
Shares = tuple[tuple[int, str, float], ...]


class UpdatedForward:
    """The ``forward`` of a module with updates of its own parameters; picklable, and follows copies of the model.

    Args:
        leaf: The module.
        path: Its path in the model.
        stock: The instance ``forward`` that was there before, bound to the class's own; or None.
    """

    def __init__(self, leaf: nn.Module, path: str, stock: Any = None) -> None:
        self.leaf = leaf
        self.path = path
        self.stock = stock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        routing = current()
        deltas: list[Delta] = []
        if routing is not None:
            deltas = [delta for delta in slot_of(self.leaf).side("weights") if applies(delta, routing)]
        found = tensor_batch_size(args, kwargs) if deltas else None
        if routing is None or found is None:
            return type(self.leaf).forward(self.leaf, *args, **kwargs)
        size, device = found
        draws = routing.state.draws
        out: Any = None
        for shares, mine in _rows_by_shares(routing, deltas, device):
            if mine is not None:
                slot = slot_of(self.leaf)
                if slot.by_row is not True or slot.row_axis:
                    read = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
                    raise rows_unknown(deltas[0], read, slot.by_row)
                routing.for_batch(size)  # raises where rows were not repeated a whole number of times
                mine = mine.repeat_interleave(size // routing.batch_size)
            # One place for all runs: a row is the same whichever adapters the others use.
            with nullcontext() if draws is None else draws.at(f"weights {self.path}"):
                made = self._run(shares, deltas, routing, args, kwargs)
            out = made if mine is None else self._choose(mine, made, made if out is None else out)
        return out

    def _run(self, shares: Shares, deltas: Sequence[Delta], routing: Routing, args: tuple, kwargs: dict) -> Any:
        """Call the stock ``forward`` with the weights of some rows."""
        # Not the module itself: another thread may be in it, and nothing is to be put back if this run fails.
        other = object.__new__(type(self.leaf))
        other.__dict__.update(self.leaf.__dict__)
        other.__dict__.pop("forward", None)
        updated = {delta.site.parameter: delta for delta in deltas}
        for name in updated:  # a replica of nn.DataParallel has its parameters as plain attributes
            other.__dict__.pop(name, None)
        if torch.compiler.is_compiling():  # a trace looks past a mapping's own ways; a compiled model was proved before
            for name, delta in updated.items():
                other.__dict__[name] = _updated(delta, getattr(self.leaf, name), shares, routing, self.leaf)
        else:
            other.__dict__["_parameters"] = _Updated(self.leaf, updated, shares, routing)
        return type(self.leaf).forward(other, *args, **kwargs)

    def _choose(self, mine: Tensor, new: Any, out: Any) -> Any:
        """Take ``new`` in the rows ``mine`` and ``out`` in the others."""
        if isinstance(new, (tuple, list)) and type(new) is type(out):
            chosen = [self._choose(mine, one, other) for one, other in zip(new, out, strict=True)]
            return type(new)(*chosen) if hasattr(new, "_fields") else type(new)(chosen)
        if new is None and out is None:
            return None
        if not isinstance(new, Tensor) or new.shape != out.shape or new.shape[:1] != mine.shape:
            raise RoutingError(
                "what a module with updates of its parameters returns cannot be put together in one batch",
                where=self.path,
                got=f"a tensor of shape {list(new.shape)}" if isinstance(new, Tensor) else type(new).__name__,
                allowed="tensors, alone or in tuples, whose first axis is the batch",
                try_="one call for each adapter",
            )
        return torch.where(mine.view(-1, *(1,) * (new.dim() - 1)), new, out)


class _Updated(dict[str, Any]):
    """The parameters of a module in one run. What is updated is so when it is read: who counts deltas sees that.

    Args:
        leaf: The module.
        deltas: By the parameter's name.
        shares: Of the rows that the run is for.
        routing: Of the pass.
    """

    def __init__(self, leaf: nn.Module, deltas: dict[str, Delta], shares: Shares, routing: Routing) -> None:
        super().__init__(leaf._parameters, **{name: getattr(leaf, name) for name in deltas})
        self.leaf, self.deltas, self.shares, self.routing = leaf, deltas, shares, routing

    def __getitem__(self, name: str) -> Any:
        delta = self.deltas.pop(name, None)
        if delta is not None:
            self[name] = _updated(delta, super().__getitem__(name), self.shares, self.routing, self.leaf)
        return super().__getitem__(name)


def _updated(delta: Delta, weight: Tensor, shares: Shares, routing: Routing, leaf: nn.Module) -> Tensor:
    """Return a parameter of the base with what some rows add to it."""
    one = TaskBatch.single(weight.shape[0], weight.device)
    new = [
        (share, delta(weight, weight, Rows((name,), one, routing, leaf, step)))
        for step, name, share in shares
        if name in delta.names
    ]
    if len(new) == 1 and new[0][0] == 1.0:
        return new[0][1]
    return weight + sum(share * (updated - weight) for share, updated in new) if new else weight


def _rows_by_shares(
    routing: Routing, deltas: Sequence[Delta], device: torch.device
) -> Iterator[tuple[Shares, Tensor | None]]:
    """Yield what the rows of a batch add to the weights, and bool ``[B]`` of the rows that do so; None for all.

    A row may use several adapters, one after the other or as an average: their updates add up.

    Raises:
        RoutingError: adapters are joined in a way that is no sum of updates.
    """
    available = tuple(dict.fromkeys(name for delta in deltas for name in delta.names))
    steps = [_shares_of_step(routing, index, deltas, available, device) for index, _ in routing.live_steps()]
    # In a traced graph, and where ranks agree on who has a gradient, adapters without rows take part as well.
    every = torch.compiler.is_compiling() or all_tasks_take_part()
    for choices in itertools.product(*[step for step in steps if step]):
        shares = tuple(share for chosen, _ in choices for share in chosen)
        masks = [mask for _, mask in choices if mask is not None]
        mine = torch.stack(masks).all(0) if masks else None
        if mine is None or every or bool(mine.any()):
            yield shares, mine


def _shares_of_step(
    routing: Routing, index: int, deltas: Sequence[Delta], available: tuple[str, ...], device: torch.device
) -> list[tuple[Shares, Tensor | None]]:
    step = routing.steps[index]
    if isinstance(step, Select):
        found = routing.rows(index, available, device)
        if found is None:
            return []
        names, batch = found
        if batch.uniform:
            return [(((index, names[0], 1.0),), None)]
        ids = batch.ids
        return [((), ids < 0), *((((index, name, 1.0),), ids == number) for number, name in enumerate(names))]
    shares = [(index, name) for name in step.names if name in available]
    if not shares:
        return []
    if not isinstance(step, Average):
        raise RoutingError(
            "updates of a module's parameters are joined in a way that is no sum of them",
            where=deltas[0].site.leaf,
            got=repr(step),
            allowed="one adapter a row, Stack, Average, Parallel",
            try_=f"hfadapt.Average({', '.join(map(repr, step.names))}), or one of these names a row",
        )
    weights = dict(zip(step.names, step.weights, strict=True))
    chosen = tuple((number, name, weights[name]) for number, name in shares)
    inside = routing.members(index, device)
    return [(chosen, None)] if inside is None else [((), ~inside), (chosen, inside)]


def update_weights(leaf: nn.Module, path: str) -> None:
    """Let ``leaf`` run with updates of its own parameters.

    Raises:
        AttachError: something else stands in the place of its ``forward``.
    """
    found = leaf.__dict__.get("forward")
    if isinstance(found, UpdatedForward):
        return
    if found is not None and not is_class_own(leaf, found):
        raise AttachError(
            "something else runs in the place of a module's forward, which would not see updates of its parameters",
            where=path,
            got=getattr(found, "__qualname__", type(found).__name__),
            allowed="a module that runs the forward of its class",
            try_="attach before it is replaced; or target_modules without parameters of this module",
        )
    leaf.__dict__["forward"] = UpdatedForward(leaf, path, found)


def take_updates(leaf: nn.Module) -> None:
    """Give ``leaf`` its class's ``forward`` back."""
    found = leaf.__dict__.get("forward")
    if isinstance(found, UpdatedForward):
        del leaf.__dict__["forward"]
        if found.stock is not None:
            leaf.__dict__["forward"] = found.stock
