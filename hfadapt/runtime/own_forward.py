"""Adapters' own copies of modules of the base (their heads, embeddings trained whole), chosen row by row.

The copies stand below the child ``hfadapt`` of the module they are copies of, which keeps its class, its parameters and
their names; only its instance ``forward`` is another callable.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfadapt_kernels import TaskBatch

from ..errors import RoutingError
from ..routing.context import current
from ..routing.routing import Routing, Rows
from ..routing.steps import Arrow, Average, Fuse, Route, Select, Step
from .fused_norm import unfuse_norm
from .leaf_hooks import tensor_batch_size
from .slot import Slot, slot_of

__all__ = ["RoutedForward", "bare_copy", "refuse_loss", "route", "train_in_float32", "unroute"]

_Module = TypeVar("_Module", bound=nn.Module)

# What others put into a module's own dictionary for that very module: wrappers of its forward, and their state.
_INSTANCE = ("forward", "_hf_hook", "_old_forward", "_hfadapt_of")


class RoutedForward:
    """The ``forward`` of a module of which adapters have copies; picklable, and follows copies of the model.

    Every copy that a batch needs computes all its rows, and each row takes its own: the sums of a row do not depend on
    how many others use the same adapter.

    Args:
        leaf: The module.
        path: Its path in the model.
        stock: The instance ``forward`` that was there before, or None.
    """

    def __init__(self, leaf: nn.Module, path: str, stock: Any) -> None:
        self.leaf = leaf
        self.path = path
        self.stock = stock
        # Outputs may differ in the width of their last axis: they are the logits.
        self.pads = False
        # The first axis of what is read is the batch's; False where all rows share one table, None where neither holds.
        self.by_row: bool | None = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        routing = current()
        found = None if routing is None else tensor_batch_size(args, kwargs)
        if routing is None or found is None:
            return self.base(*args, **kwargs)
        copies = slot_of(self.leaf).copies
        size, device = found
        owners = tuple(copies)
        out: Any = None  # the base's own output is computed where a row needs it
        for index, step in enumerate(routing.steps):
            if not routing.takes_part(index):
                continue
            if isinstance(step, Select):
                chosen = routing.rows(index, owners, device)
                if chosen is None:
                    continue
                rows = Rows(*chosen, routing, self.leaf)
                if rows.batch.uniform:
                    out = self.run(rows.names[0], args, kwargs)
                    continue
                ids = self._ids(rows, size)
                out = self.base(*args, **kwargs) if out is None and self._some_without(routing, rows) else out
                for number, name in enumerate(rows.names):
                    out = self._merge(out, self.run(name, args, kwargs), ids == number)
                continue
            before = self.base(*args, **kwargs) if out is None else out
            changed = self._together(step, self._shares(step, index, routing, size), before, args, kwargs)
            members = routing.members(index, device)
            if changed is not None and members is not None:
                whole = Rows((), TaskBatch(members.long() - 1, 1), routing, self.leaf)
                changed = self._merge(
                    self.base(*args, **kwargs) if out is None else out, changed, self._ids(whole, size) == 0
                )
            out = out if changed is None else changed
        return self.base(*args, **kwargs) if out is None else out

    def base(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes without adapters."""
        stock = self.stock or type(self.leaf).forward.__get__(self.leaf)
        return self._drawn("", stock, args, kwargs)

    def _drawn(self, name: str, run: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call a copy, or the module itself (""); what one of them drops moves no other's dropout."""
        routing = current()
        if routing is None or routing.state.draws is None:
            return run(*args, **kwargs)
        with routing.state.draws.at(f"copy {self.path} {name}", routing.state.calls):
            return run(*args, **kwargs)

    def run(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call the copy of an adapter: float32 on a base of lower precision, it reads and returns the base's dtype."""
        own = slot_of(self.leaf).copies[name]
        mine, stock = _place(own), _place(self.leaf)
        if mine is None or stock is None or mine == stock or torch.is_autocast_enabled(mine[0].type):
            return self._drawn(name, own, args, kwargs)
        made = self._drawn(name, own, _moved(args, *mine), _moved(kwargs, *mine))
        return _moved(made, *stock)

    def _shares(self, step: Step, index: int, routing: Routing, size: int) -> Sequence[float | Tensor]:
        """The weights with which own modules are mixed, numbers or one a row ``[size]``; none in a fused step."""
        if isinstance(step, Average):
            return step.weights
        if isinstance(step, Arrow):  # a head has no prototype to choose it by
            return (1 / len(step.names),) * len(step.names)
        if not isinstance(step, Route):
            return ()
        if self.by_row is not True:
            raise self._rows_unknown(", ".join(step.names))
        return routing.shares(index, size).unbind(1)

    def _together(
        self, step: Step, shares: Sequence[float | Tensor], value: Any, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """The output of rows that use several adapters at once, or None where these have no copy."""
        copies = slot_of(self.leaf).copies
        if isinstance(step, Fuse):
            return self.run(step.key, args, kwargs) if step.key in copies else None
        pairs = [(name, w) for name, w in zip(step.names, shares, strict=True) if name in copies]
        made = [(self.run(name, args, kwargs), weight) for name, weight in pairs]
        if not made:
            return None
        if any(not isinstance(one, Tensor) or one.shape != value.shape for one, _ in made):
            raise RoutingError(
                "the outputs of adapters' own modules cannot be averaged",
                where=f"{self.path}: {step!r}",
                got=", ".join(f"{n}: {_shape(one)}" for (n, _), (one, _) in zip(pairs, made, strict=True)),
                allowed=f"one tensor each, of the base's shape {_shape(value)}",
                try_="one of these adapters a row in task_ids, in place of their average",
            )
        return value + sum(_weighed(one - value, weight) for one, weight in made)

    def _ids(self, rows: Rows, size: int) -> Tensor:
        """Which adapter each row of what the module reads has, int64 ``[size]``."""
        if self.by_row is None:
            raise self._rows_unknown(", ".join(rows.names))
        if not self.by_row or size == rows.batch.batch_size:
            return rows.batch.ids
        rows.routing.for_batch(size)  # raises where rows were not repeated a whole number of times
        return rows.batch.expand(size // rows.batch.batch_size).ids

    def _rows_unknown(self, names: str) -> RoutingError:
        return RoutingError(
            "rows of different adapters cannot be told apart in what this module reads",
            where=self.path,
            got=f"{names} in one batch",
            allowed="an input whose first axis is the batch",
            try_="one call for each adapter",
        )

    def _some_without(self, routing: Routing, rows: Rows) -> bool:
        """Say whether a row may have no copy of its own; in a traced graph, where rows are unknown, one may."""
        return torch.compiler.is_compiling() or bool((rows.batch.ids < 0).any())

    def _merge(self, out: Any, new: Any, mine: Tensor) -> Any:
        """Take ``new`` in the rows ``mine`` and ``out`` in the others."""
        if out is None:
            return new
        if isinstance(out, Tensor) and isinstance(new, Tensor):
            return self._merge_tensors(out, new, mine)
        if isinstance(out, Mapping) and isinstance(new, Mapping) and out.keys() == new.keys():
            return type(out)(**{key: self._merge(one, new[key], mine) for key, one in out.items()})
        if isinstance(out, (tuple, list)) and type(out) is type(new) and len(out) == len(new):
            merged = [self._merge(one, other, mine) for one, other in zip(out, new, strict=True)]
            return type(out)(*merged) if hasattr(out, "_fields") else type(out)(merged)
        if new is None:
            return out
        raise self._refused(out, new)

    def _merge_tensors(self, out: Tensor, new: Tensor, mine: Tensor) -> Tensor:
        if not self.by_row and new.shape[:1] == (1,):  # one table for all rows: each row takes its own adapter's
            out, new = (t if t.shape[0] == len(mine) else t.expand(len(mine), *t.shape[1:]) for t in (out, new))
        if self.pads and out.shape[:-1] == new.shape[:-1] and out.shape[-1] != new.shape[-1]:
            width = max(out.shape[-1], new.shape[-1])
            # No probability, and never the largest: argmax and softmax of every row are those of its own classes.
            out, new = (F.pad(t, (0, width - t.shape[-1]), value=float("-inf")) for t in (out, new))
        if out.shape != new.shape or out.shape[:1] != mine.shape:
            raise self._refused(out, new)
        return torch.where(mine.view(-1, *(1,) * (new.dim() - 1)), new.to(out.dtype), out)

    def _refused(self, out: Any, new: Any) -> RoutingError:
        return RoutingError(
            "what adapters' own modules return cannot be put together in one batch",
            where=self.path,
            got=f"{_shape(out)} and {_shape(new)}",
            allowed="tensors of one shape, whose first axis is the batch",
            try_="one call for each adapter",
        )


def _weighed(effect: Tensor, weight: float | Tensor) -> Tensor:
    """Return an effect times its weight, a number or one a row; rows of weight 0 have none, whatever stands there."""
    if not isinstance(weight, Tensor):
        return weight * effect
    share = weight.to(effect.dtype).view(-1, *(1,) * (effect.dim() - 1))
    return torch.where(share != 0, share * effect, torch.zeros_like(effect))


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _place(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Where a module computes, and in which dtype; None without floating-point parameters of its own."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not name.startswith("hfadapt."):
            return parameter.device, parameter.dtype
    return None


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move tensors, also those inside lists and maps, and cast floating-point ones."""
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, Mapping):
        made = {key: _moved(one, device, dtype) for key, one in value.items()}
        return made if type(value) is dict else type(value)(**made)
    if type(value) in (tuple, list):
        return type(value)(_moved(one, device, dtype) for one in value)
    return value


def bare_copy(module: _Module) -> _Module:
    """Return a trainable copy of a module of the base, without what adapters and others hung on that very module.

    Hooks of others stay where they are, and run there once.
    """
    memo: dict[int, Any] = {}
    for inner in module.modules():
        if isinstance(inner, Slot):
            memo[id(inner)] = None
        for key, value in inner.__dict__.items():
            if key in _INSTANCE:
                memo[id(value)] = None
            elif key.startswith(("_forward_", "_backward_")) and isinstance(value, dict):
                memo[id(value)] = OrderedDict()
    made = copy.deepcopy(module, memo)
    for inner in made.modules():
        inner._modules.pop("hfadapt", None)
        for key in _INSTANCE:
            inner.__dict__.pop(key, None)
    for parameter in made.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return made


def refuse_loss(routing: Routing, label_counts: Mapping[str, int], model: str) -> None:
    """Raise where a call with labels uses a head of another width than the base's: its loss counts on that.

    Args:
        routing: Of the call.
        label_counts: How many outputs the heads of such adapters have.
        model: The model's class.

    Raises:
        RoutingError: one of these adapters takes part.
    """
    used = {name: label_counts[name] for name in routing.used_names() if name in label_counts}
    if used:
        raise RoutingError(
            "the loss of this model is made for another number of labels than the adapter's own head has",
            where=model,
            got=", ".join(f"{name}: {count} labels" for name, count in used.items()),
            allowed="adapters whose heads have as many labels as the base's",
            try_="a base with as many (num_labels=...); or call without labels, and compute the loss of the logits",
        )


class _CastInput:
    """Casts what a module reads to the dtype of its parameters."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        place = _place(module)
        if place is None or torch.is_autocast_enabled(place[0].type):
            return None
        return _moved(args, *place), _moved(kwargs, *place)


def train_in_float32(module: nn.Module) -> None:
    """Make a module that is trained in place float32, and let it read a base of lower precision."""
    place = _place(module)
    if place is None or place[1].itemsize >= torch.float32.itemsize:
        return
    module.float()
    module.register_forward_pre_hook(_CastInput(), with_kwargs=True)


def route(leaf: nn.Module, path: str) -> RoutedForward:
    """Let ``leaf`` run the copies that adapters have of it; return what chooses among them."""
    found = leaf.__dict__.get("forward")
    if isinstance(found, RoutedForward):
        return found
    slot = slot_of(leaf)
    if slot.fuses_norm:  # the op that finishes with the norm knows the base's weights alone
        unfuse_norm(leaf)
        slot.fuses_norm = False
        found = None
    leaf.__dict__["forward"] = RoutedForward(leaf, path, found)
    return leaf.__dict__["forward"]


def unroute(leaf: nn.Module) -> None:
    """Give ``leaf`` the forward back that it had."""
    found = leaf.__dict__.get("forward")
    if isinstance(found, RoutedForward):
        if found.stock is None:
            del leaf.__dict__["forward"]
        else:
            leaf.__dict__["forward"] = found.stock
