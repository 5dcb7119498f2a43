"""Which adapter each row of a batch uses, how deep adapters are dropped, and what slots hand to one another.

The routing of a forward pass is set by a hook on the model's root and read by slots from a ``threading.local``: a
``ContextVar`` breaks ``torch.compile(fullgraph=True)``, and an attribute of the model would be shared by threads.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfadapt_kernels import TaskBatch

from ..errors import RoutingError

if TYPE_CHECKING:
    from torch import nn

    from .growth import Growth
    from .steps import Step

__all__ = ["Routing", "Rows", "all_tasks_take_part", "current", "use_routing"]

_STATE = threading.local()


def current() -> Routing | None:
    """Return the routing of the forward pass that runs in this thread, or None."""
    return getattr(_STATE, "routing", None)


def set_current(routing: Routing | None) -> None:
    """Replace the routing of this thread; callers put back what they found."""
    _STATE.routing = routing


class use_routing:
    """Context manager that sets the routing and puts back what it found, also on exceptions."""

    def __init__(self, routing: Routing | None) -> None:
        self.routing = routing

    def __enter__(self) -> Routing | None:
        self.before = current()
        set_current(self.routing)
        return self.routing

    def __exit__(self, *error: object) -> None:
        set_current(self.before)


def all_tasks_take_part() -> bool:
    """Say whether adapters without a row in the batch still take part, with a gradient of zero.

    In eager single-process use only the adapters present in a batch are touched, so the others' ``.grad`` stays
    ``None`` and no optimizer moves them. A compiled graph cannot depend on the batch's content, and data-parallel
    ranks must agree on which parameters have gradients: there every adapter takes part, and
    ``hfadapt.training.IdleTaskGuard`` turns the zero gradients of idle ones into ``None`` after the all-reduce.
    This function is the one place that decides.
    """
    if torch.compiler.is_compiling():
        return True
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@dataclass(frozen=True)
class Rows:
    """What a delta is told about the batch.

    Args:
        names: The adapters to use, in the order that ``batch.ids`` counts.
        batch: Which of ``names`` each row has; -1 where a row has none.
        routing: The routing of the forward pass (masks, shared tensors).
        leaf: The module of the base at whose slot the delta sits.
    """

    names: tuple[str, ...]
    batch: TaskBatch
    routing: Routing
    leaf: nn.Module

    def gather(self, tensors: Sequence[Tensor], missing: float) -> Tensor:
        """Return each row's own tensor, stacked: ``[B, *shape]``, filled with ``missing`` for rows without one."""
        stacked = torch.stack(list(tensors))
        if self.batch.uniform:
            return stacked[0].unsqueeze(0)
        chosen = stacked[self.batch.ids.clamp_min(0)]
        absent = (self.batch.ids < 0).view(-1, *(1,) * (chosen.dim() - 1))
        return chosen.masked_fill(absent, missing)


@dataclass
class Routing:
    """The routing of one forward pass.

    Args:
        names: Routable names; ``ids`` index them.
        steps: What slots run, from ``plan``.
        ids: int64 ``[B]``, or None when every row has the id ``uniform``; -1 for rows without an adapter.
        uniform: The id of all rows when ``ids`` is None.
        batch_size: B.
        mask: The two-dimensional attention mask ``[B, T]`` of the stack that runs, or None.
        attentions: The caller asked for attention weights.
        other_mask: An attention mask of another form than ``mask``, as it was given.
        memory_mask: The attention mask of the encoder's states that a decoder reads, as it was given.
        cache: The key-value cache of the call, or None.
        cached: How many tokens it holds; a tensor in a traced graph whose cache counts in one.
        other_past: What stands for earlier tokens in the call and is no cache of transformers' kind; "" for nothing.
        tokens: How many tokens the stack that runs was given; 0 where it was given something else.
        without_cache: By place that needs earlier tokens, how many new ones it was given while no cache was seen.
        growth: How the batch grows on its way up (``Parallel``); ``ids`` and ``batch_size`` say what it grows to.
        drop: AdapterDrop: for each stack's path, how many of its lowest layers have no deltas; "" stands for the rest.
        prepared: Tensors that shared modules computed before the first layer, by shared module.
        penalised: Modules that want a term in the training loss, by path.
        loss_share: How much of that term the loss of this call holds; None where the call has no loss.
        options: Anything methods agree on among themselves (say, recording of fusion weights).
    """

    names: tuple[str, ...]
    steps: tuple[Step, ...]
    ids: Tensor | None
    uniform: int
    batch_size: int
    owner: object = None
    mask: Tensor | None = None
    attentions: bool = False
    drop: Mapping[str, int] = field(default_factory=dict)
    prepared: dict[Any, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    taps: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    deferred: dict[str, Any] = field(default_factory=dict)
    penalised: dict[str, Any] = field(default_factory=dict)
    loss_share: Tensor | float | None = None
    growth: Growth | None = None
    other_mask: Any = None
    memory_mask: Any = None
    cache: Any = None
    cached: int | Tensor = 0
    other_past: str = ""
    tokens: int = 0
    without_cache: dict[str, int] = field(default_factory=dict)
    id_list: tuple[int, ...] | None = None
    _rows: dict[Any, Any] = field(default_factory=dict)

    def drop_depth(self, stack: str) -> int:
        """Return how many of the lowest layers of ``stack`` have no deltas in this pass."""
        return self.drop.get(stack, self.drop.get("", 0)) if self.drop else 0

    def for_batch(self, batch_size: int) -> Routing:
        """Return the same routing for a batch whose rows were repeated (beams, several sequences a prompt).

        Raises:
            RoutingError: ``batch_size`` is not a multiple of this routing's.
        """
        if batch_size == self.batch_size:
            return self
        if self.ids is None:
            return replace(self, batch_size=batch_size, taps={}, _rows={})
        times = _times(batch_size, self.batch_size)
        ids = self.ids.repeat_interleave(times)
        listed = None if self.id_list is None else tuple(i for i in self.id_list for _ in range(times))
        return replace(self, ids=ids, id_list=listed, batch_size=batch_size, taps={}, _rows={})

    def live_steps(self) -> tuple[tuple[int, Step], ...]:
        """Return the steps that any row may be in, with their numbers, worked out once a forward."""
        live = self._rows.get(())
        if live is None:
            live = self._rows[()] = tuple((i, step) for i, step in enumerate(self.steps) if self.takes_part(i))
        return live

    def rows(
        self, index: int, available: tuple[str, ...], device: torch.device
    ) -> tuple[tuple[str, ...], TaskBatch] | None:
        """Return which of the adapters ``available`` at a slot the rows use in step ``index``, or None if no row does.

        Worked out once per forward for each set of adapters, however many slots ask.
        """
        key = (index, available)
        if key not in self._rows:
            self._rows[key] = self._find_rows(self.steps[index], available, device)
        return self._rows[key]

    def _find_rows(self, step: Step, available: tuple[str, ...], device: torch.device) -> Any:
        usable = [n in available for n in step.names]
        if self.ids is None:
            local = step.local(self.uniform)
            if local < 0 or not usable[local]:
                return None
            return (step.names[local],), TaskBatch.single(self.batch_size, device)
        if all_tasks_take_part() or self.id_list is None:
            names = tuple(n for n, ok in zip(step.names, usable, strict=True) if ok)
            if not names:
                return None
            place = {name: i for i, name in enumerate(names)}
            table = [place.get(step.names[t], -1) if t >= 0 else -1 for t in step.table]
            return names, TaskBatch.from_ids(step.lookup(self.ids, table), len(names))
        local_ids = [step.local(i) for i in self.id_list]
        local_ids = [t if t >= 0 and usable[t] else -1 for t in local_ids]
        present = sorted({t for t in local_ids if t >= 0})
        if not present:
            return None
        names = tuple(step.names[t] for t in present)
        if len(present) == 1 and -1 not in local_ids:
            return names, TaskBatch.single(self.batch_size, device)
        place = {t: i for i, t in enumerate(present)}
        ids = torch.tensor([place.get(t, -1) for t in local_ids], dtype=torch.int64, device=device)
        return names, TaskBatch.from_ids(ids, len(names))

    def together(self, index: int, device: torch.device) -> TaskBatch:
        """Return the rows of an average or fuse step as the rows of one adapter, worked out once a forward."""
        key = (index, ())
        if key not in self._rows:
            inside = self.members(index, device)
            whole = TaskBatch.single(self.batch_size, device)
            self._rows[key] = whole if inside is None else TaskBatch.from_ids(inside.to(torch.int64) - 1, 1)
        return self._rows[key]

    def used_names(self) -> tuple[str, ...]:
        """Return the adapters that take part in this pass."""
        tasks = {self.uniform} if self.ids is None else None if self.id_list is None else set(self.id_list)
        if tasks is None or (self.ids is not None and all_tasks_take_part()):
            tasks = set(range(len(self.names)))
        return tuple(dict.fromkeys(name for step in self.steps for name in step.used(tasks)))

    def takes_part(self, index: int) -> bool:
        """Say whether any row may be in step ``index``; in a traced graph, where rows are unknown, any may."""
        step = self.steps[index]
        if self.ids is None:
            return step.local(self.uniform) >= 0
        return self.id_list is None or all_tasks_take_part() or any(step.local(i) >= 0 for i in self.id_list)

    def members(self, index: int, device: torch.device, size: int | None = None) -> Tensor | None:
        """Return which rows are in an average or fuse step, bool ``[B]``, or None when every row is.

        Args:
            index: Of the step.
            device: Of the rows.
            size: Rows of the tensor that the answer is for, where its first axis is longer than the batch (models that
                flatten batch and tokens, beams): each row's answer stands as often as the row.
        """
        step = self.steps[index]
        if self.ids is None:
            inside = step.local(self.uniform) >= 0
            return None if inside else torch.zeros(size or self.batch_size, dtype=torch.bool, device=device)
        found = step.lookup(self.ids, step.table) >= 0
        if size is None or size == self.batch_size:
            return found
        return found.repeat_interleave(_times(size, self.batch_size))


def _times(rows: int, batch_size: int) -> int:
    """Return how often each row of the batch stands among ``rows``.

    Raises:
        RoutingError: not a whole number of times.
    """
    if batch_size == 0 or rows % batch_size:
        raise RoutingError(
            "task_ids do not match the rows of the batch",
            got=f"{batch_size} task ids for {rows} rows",
            allowed="one id a row, or rows repeated a whole number of times",
        )
    return rows // batch_size
