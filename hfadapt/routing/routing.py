"""Which adapter each row of a batch uses, and how deep adapters are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfadapt_kernels import TaskBatch

from ..errors import RoutingError
from .forward_pass import Pass, StackInputs

if TYPE_CHECKING:
    from torch import nn

    from .steps import Step

__all__ = ["Routing", "Rows", "all_tasks_take_part"]


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
        step: Which of the routing's steps this is.
    """

    names: tuple[str, ...]
    batch: TaskBatch
    routing: Routing
    leaf: nn.Module
    step: int = 0

    def gather(self, tensors: Sequence[Tensor], missing: float) -> Tensor:
        """Return each row's own tensor, stacked: ``[B, *shape]``, filled with ``missing`` for rows without one."""
        stacked = torch.stack(list(tensors))
        if self.batch.uniform:
            return stacked[0].unsqueeze(0)
        chosen = stacked[self.batch.ids.clamp_min(0)]
        absent = (self.batch.ids < 0).view(-1, *(1,) * (chosen.dim() - 1))
        return chosen.masked_fill(absent, missing)


@dataclass(frozen=True, eq=False)
class Routing:
    """The routing of one forward pass, at the root or, with the inputs of that stack, inside one of its stacks.

    Args:
        names: Routable names; ``ids`` index them.
        steps: What slots run, from ``plan``.
        ids: int64 ``[B]``, or None when every row has the id ``uniform``; -1 for rows without an adapter.
        uniform: The id of all rows when ``ids`` is None.
        batch_size: B.
        given: What the stack that runs was given beside its rows.
        state: What changes while the pass runs.
        id_list: ``ids`` as numbers; None where nobody has read them.
        owner: The token of the model's attachment, by which models inside one another tell theirs.
        drop: AdapterDrop: for each stack's path, how many of its lowest layers have no deltas; "" stands for the rest.
    """

    names: tuple[str, ...]
    steps: tuple[Step, ...]
    ids: Tensor | None
    uniform: int
    batch_size: int
    # Without defaults: torch.compile makes instances of classes that it finds by name, not of a default's.
    given: StackInputs
    state: Pass
    id_list: tuple[int, ...] | None = None
    owner: object = None
    drop: Mapping[str, int] = field(default_factory=dict)

    # What deltas of any method read, under one name wherever it is kept.
    @property
    def mask(self) -> Tensor | None:
        """The two-dimensional attention mask ``[B, T]`` of the stack that runs, or None."""
        return self.given.mask

    @property
    def other_mask(self) -> Any:
        """An attention mask of another form than ``mask``, as it was given."""
        return self.given.other_mask

    @property
    def memory_mask(self) -> Any:
        """The attention mask of the encoder's states that a decoder reads, as it was given."""
        return self.given.memory_mask

    @property
    def attentions(self) -> bool:
        """Whether the caller asked for attention weights."""
        return self.given.attentions

    @property
    def cache(self) -> Any:
        """The key-value cache of the call, or None."""
        return self.given.cache

    @property
    def cached(self) -> int | Tensor:
        """How many tokens the cache holds; a tensor in a traced graph whose cache counts in one."""
        return self.given.cached

    @property
    def taps(self) -> dict[str, Tensor]:
        """Tensors of the layers that run, kept for deltas further on, by the key of a `Tap`."""
        return self.state.taps

    @property
    def prepared(self) -> dict[Any, Any]:
        """What was computed once for all layers, by adapter and method."""
        return self.state.prepared

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
        state = self.state.for_other_rows()
        if self.ids is None:
            return replace(self, batch_size=batch_size, state=state)
        times = _times(batch_size, self.batch_size)
        ids = self.ids.repeat_interleave(times)
        listed = None if self.id_list is None else tuple(i for i in self.id_list for _ in range(times))
        return replace(self, ids=ids, id_list=listed, batch_size=batch_size, state=state)

    def for_all(self, task: int) -> Routing:
        """Return the same routing with one id for all rows."""
        return replace(self, ids=None, id_list=None, uniform=task, state=replace(self.state, found={}))

    def live_steps(self) -> tuple[tuple[int, Step], ...]:
        """Return the steps that any row may be in, with their numbers, worked out once a forward."""
        live = self.state.found.get(())
        if live is None:
            live = self.state.found[()] = tuple((i, step) for i, step in enumerate(self.steps) if self.takes_part(i))
        return live

    def rows(
        self, index: int, available: tuple[str, ...], device: torch.device
    ) -> tuple[tuple[str, ...], TaskBatch] | None:
        """Return which of the adapters ``available`` at a slot the rows use in step ``index``, or None if no row does.

        Worked out once per forward for each set of adapters, however many slots ask.
        """
        key, found = (index, available), self.state.found
        if key not in found:
            found[key] = self._find_rows(self.steps[index], available, device)
        return found[key]

    def _find_rows(self, step: Step, available: tuple[str, ...], device: torch.device) -> Any:
        # Looked up among all of them by hash: a batch of a few tasks must not cost what a thousand would.
        here = dict.fromkeys(available)
        if self.ids is None:
            local = step.local(self.uniform)
            if local < 0 or step.names[local] not in here:
                return None
            return (step.names[local],), TaskBatch.single(self.batch_size, device)
        if all_tasks_take_part() or self.id_list is None:
            names = tuple(n for n in step.names if n in here)
            if not names:
                return None
            place = {name: i for i, name in enumerate(names)}
            table = [place.get(step.names[t], -1) if t >= 0 else -1 for t in step.table]
            return names, TaskBatch.from_ids(step.lookup(self.ids, table), len(names))
        local_ids = [step.local(i) for i in self.id_list]
        local_ids = [t if t >= 0 and step.names[t] in here else -1 for t in local_ids]
        present = sorted({t for t in local_ids if t >= 0})
        if not present:
            return None
        names = tuple(step.names[t] for t in present)
        if len(present) == 1 and -1 not in local_ids:
            return names, TaskBatch.single(self.batch_size, device)
        place = {t: i for i, t in enumerate(present)}
        return names, TaskBatch.from_ids([place.get(t, -1) for t in local_ids], len(names), device=device)

    def together(self, index: int, device: torch.device) -> TaskBatch:
        """Return the rows of an average or fuse step as the rows of one adapter, worked out once a forward."""
        key, found = (index, ()), self.state.found
        if key not in found:
            inside = self.members(index, device)
            whole = TaskBatch.single(self.batch_size, device)
            found[key] = whole if inside is None else TaskBatch.from_ids(inside.to(torch.int64) - 1, 1)
        return found[key]

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

    def shares(self, index: int, size: int) -> Tensor:
        """Return the weight of each adapter of a routed step for each row ``[size, N]``; see `members` for ``size``."""
        found = self.state.shares[index]
        return found if size == found.shape[0] else found.repeat_interleave(_times(size, found.shape[0]), 0)


def _times(rows: int, batch_size: int) -> int:
    """Return how often each row of the batch stands among ``rows``.

    Raises:
        RoutingError: not a whole number of times.
    """
    if batch_size == 0 or rows % batch_size:
        raise RoutingError(
            "task_ids do not match the rows of the batch",
            where="task_ids",
            got=f"{batch_size} task ids for {rows} rows",
            allowed="one id a row, or rows repeated a whole number of times",
            try_=f"{rows} task ids, or one name for the whole batch",
        )
    return rows // batch_size
