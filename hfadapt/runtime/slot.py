"""The module that runs the deltas of a leaf: at its input, at its output, and in its attention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import RoutingError
from ..method.delta import Delta
from ..method.sites import Site
from ..routing.routing import Routing, Rows
from ..routing.steps import Arrow, Fuse, Route, Select, Step
from .delta_call import apply_rows, source_of
from .token_routing import run_arrow

if TYPE_CHECKING:
    from hfadapt_kernels import TaskBatch

    from ..method.method import Place

_FUSION_KEY = re.compile(r"__(input|output)(__d\d+)?$")

__all__ = ["Slot", "rows_unknown", "run_slot"]


class Slot(nn.Module):
    """The child ``hfadapt`` of a module: the deltas at its input, its output and in its attention, and its copies."""

    # The first axis of what the leaf reads is the batch's; None where that is still to be tried.
    by_row: bool | None = True
    # The axis of the rows: 1 where the leaf was seen to read time before the batch, as speech and older models hand on.
    row_axis: int = 0
    # What the leaf reads and returns is [B, D, height, width].
    channels_first: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.deltas = nn.ModuleDict()
        # The leaf itself, trained: a copy for each adapter that has one (see own_forward.py).
        self.copies = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        # The leaf is a norm that finishes the op of the last delta at its input (see fused_norm.py).
        self.fuses_norm = False
        self._sides: dict[str, tuple[Delta, ...]] = {}

    def delta(self, place: Place, method: str) -> Delta:
        """Return the delta for ``place``, made on first use."""
        site = place.site
        key = "__".join(
            p for p in (method, site.slot, place.variant, f"d{site.layer}" if site.shared_layer else "") if p
        )
        if not site.rows_known and self.by_row:
            self.by_row, self.row_axis = None, site.row_axis
        self.channels_first |= site.channels_first
        if key not in self.deltas:
            self.deltas[key] = made = place.delta(site)
            made.place = f"{site.leaf} {key}"
            self._index()
        found = self.deltas[key]
        assert isinstance(found, Delta)
        return found

    def drop_empty(self) -> bool:
        """Remove deltas without adapters; return whether nothing is left, copies of the leaf included."""
        for key in [k for k, d in self.deltas.items() if not d.names]:
            del self.deltas[key]
        self._index()
        return not self.deltas and not self.copies

    def side(self, side: str) -> tuple[Delta, ...]:
        """Return the deltas of one side, in the order they were attached."""
        return self._sides.get(side, ())

    def fusion(self, step: Step, deltas: Sequence[Delta]) -> nn.Module | None:
        """Return the fusion layer that attends over all of ``deltas`` in ``step``, or None."""
        if not isinstance(step, Fuse) or not self.fusions:
            return None
        keys = (fusion_key(step.key, delta.site) for delta in deltas)
        return next((self.fusions[key] for key in keys if key in self.fusions), None)

    def _index(self) -> None:
        sides: dict[str, list[Delta]] = {}
        for delta in self.deltas.values():
            assert isinstance(delta, Delta)
            sides.setdefault(delta.site.side, []).append(delta)
        self._sides = {side: tuple(deltas) for side, deltas in sides.items()}


def slot_of(leaf: nn.Module) -> Slot:
    """Return the slot of a module that has one."""
    slot = leaf.hfadapt
    assert isinstance(slot, Slot)
    return slot


def fusion_key(node: str, site: Site) -> str:
    """The name of the fusion layer that serves a place, among ``Slot.fusions``."""
    return f"{node}__{site.side}" + (f"__d{site.layer}" if site.shared_layer else "")


def fused_node(key: str) -> str:
    """The key of the node that a fusion layer's name stands for: the inverse of `fusion_key`."""
    return _FUSION_KEY.sub("", key)


def applies(delta: Delta, routing: Routing) -> bool:
    """Say whether ``delta`` takes part at the depth the forward pass is at: not dropped, and its own call."""
    site = delta.site
    if routing.drop and site.layer < routing.drop_depth(site.stack):
        return False
    return not site.shared_layer or routing.state.calls.get(site.shared_layer, 0) - 1 == site.call


def run_slot(leaf: nn.Module, side: str, value: Tensor, leaf_input: Tensor | None, routing: Routing) -> Tensor:
    """Run the deltas of one side of a leaf on ``value``.

    Every slot runs this in every forward, and its cost is that of the calls it makes: what is the same for all slots
    (which steps have a row, which rows use which adapters) is looked up in the pass.

    Args:
        leaf: The module of the base.
        side: ``"input"`` or ``"output"``.
        value: What the deltas change.
        leaf_input: What the leaf read; None at its input.
        routing: Of the forward pass.
    """
    steps = routing.live_steps()
    if not steps:  # every row is the base's
        return value
    slot: Any = leaf._modules["hfadapt"]
    deltas = [delta for delta in slot.side(side) if applies(delta, routing)]
    if not deltas:
        return value
    device = value.device
    if slot.channels_first:
        value = value.movedim(1, -1)
        leaf_input = leaf_input if leaf_input is None else leaf_input.movedim(1, -1)
    if slot.row_axis:
        value = value.transpose(0, 1)
        leaf_input = leaf_input if leaf_input is None else leaf_input.transpose(0, 1)
    for index, step in steps:
        if not isinstance(step, Select):
            value = _run_together(step, index, deltas, value, leaf_input, leaf, routing)
            continue
        for delta in deltas:
            found = routing.rows(index, delta.names, device)
            if found is None:
                continue
            if slot.by_row is not True and not found[1].uniform:
                raise rows_unknown(delta, value, slot.by_row)
            source = source_of(delta, value, leaf_input, routing)
            rows = Rows(*found, routing, leaf, index)
            turned = slot.row_axis or slot.channels_first
            fuses = slot.fuses_norm and not turned and side == "input" and delta is deltas[-1]
            if fuses and _defers(delta, index, value, routing):
                routing.state.deferred[delta.site.leaf] = (delta, source, rows)
                return value
            value = apply_rows(delta, value, source, rows)
    if slot.channels_first:
        return value.movedim(-1, 1).contiguous()
    return value.transpose(0, 1).contiguous() if slot.row_axis else value


def rows_unknown(delta: Delta, value: Tensor, by_row: bool | None) -> RoutingError:
    """The error of a batch of several adapters at a leaf whose input is not known to have the batch's rows."""
    if by_row is None and torch.compiler.is_compiling():  # all that a trace shows of an error is what is wrong
        return RoutingError(
            "no call has shown yet whether what a module reads has the batch's rows: make one call of the model itself "
            "with such a batch before torch.compile",
            where=delta.site.leaf,
            got="rows of several adapters in the first call, and that call compiled",
            allowed="a module whose rows an earlier call has shown",
            try_="model(**inputs, task_ids=[...]) once before torch.compile(model)",
        )
    return RoutingError(
        "rows of different adapters cannot be told apart in what this module reads",
        where=delta.site.leaf,
        got=f"a tensor of shape {list(value.shape)}, in which no rows of the batch were found",
        allowed="an input whose first axis is the batch, or whose second is where it has three",
        try_="one call for each adapter; or target_modules without this module",
    )


def _defers(delta: Delta, index: int, value: Tensor, routing: Routing) -> bool:
    """Say whether the last delta at a norm's input is left to the norm, when the last step has come to it.

    Under autocast the stock norm computes and returns float32, which the op would not.
    """
    last = index == len(routing.steps) - 1
    return last and delta.fuses_norm and not torch.is_autocast_enabled(value.device.type)


def _run_together(
    step: Step,
    index: int,
    deltas: Sequence[Delta],
    value: Tensor,
    leaf_input: Tensor | None,
    leaf: nn.Module,
    routing: Routing,
) -> Tensor:
    """Run a step whose rows use several adapters at once."""
    slot = slot_of(leaf)
    if slot.by_row is not True and (routing.ids is not None or isinstance(step, Route)):
        raise rows_unknown(deltas[0], value, slot.by_row)
    if isinstance(step, Arrow):
        return run_arrow(step, index, deltas, value, leaf_input, leaf, routing)
    fusion = slot.fusion(step, deltas)
    if fusion is not None:
        if routing.state.draws is None:
            return fusion(value, leaf_input, leaf, routing, index)
        with routing.state.draws.at(f"{deltas[0].place} {index} fusion", routing.state.calls):
            return fusion(value, leaf_input, leaf, routing, index)
    for delta in deltas:
        value = _run_delta(delta, step, index, value, leaf_input, leaf, routing)
    return value


def _run_delta(
    delta: Delta, step: Step, index: int, value: Tensor, leaf_input: Tensor | None, leaf: nn.Module, routing: Routing
) -> Tensor:
    def run(names: tuple[str, ...], batch: TaskBatch) -> Tensor:
        source = source_of(delta, value, leaf_input, routing)
        return apply_rows(delta, value, source, Rows(names, batch, routing, leaf, index))

    return step.apply(routing, index, value.device, delta.names, lambda: value, run)
