"""How rows run so that each keeps its bits: which share a batch, and on which implementation of the ops."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hfadapt_kernels import native, use_backend
from hfadapt_kernels.errors import BackendError

from ..data import MultiTaskCollator
from ..routing.composition import adapter_names
from ..runtime.attachment import find_attachment
from .batches import PaddedCollator, Shape, largest_size, padded_length, plan
from .lock import SharedLock
from .predict import Predictor, Run
from .proof import Outputs, RowProof

if TYPE_CHECKING:
    from ..multitask.task import Task

__all__ = ["Changed", "Isolated", "Planned"]

logger = logging.getLogger(__name__)

Planned = Callable[["tuple[Task, ...]", list[dict[str, Any]], bool], Iterator[tuple[Run, list[int]]]]
"""Splits rows into batches, given the tasks that they count."""


class Isolated(Predictor):
    """A `Predictor` whose rows run in batches that were shown to keep their bits, while tasks come and go."""

    token_budget: int
    _collates: PaddedCollator

    def _start(self, isolation: str) -> None:
        self._lock = SharedLock()
        # Left to itself, an op gives calls of few rows to torch, whose sums hang on how many there are.
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        self._backend = "cpu" if on_cpu and native.available() and isolation == "bits" else "auto"
        probes: tuple[Run, Run] = (self._forward, functools.partial(self._write, probe=True))
        self._proofs = tuple(RowProof(self._on_backend(run), self._kind_of, isolation == "bits") for run in probes)
        self._runs = (self._on_backend(self._forward), self._on_backend(self._write))

    def _planned(
        self, known: tuple[Task, ...], rows: list[dict[str, Any]], text: bool
    ) -> Iterator[tuple[Run, list[int]]]:
        for shape, numbers in plan(rows, self._limit, self.token_budget, self._proofs[text].most):
            yield functools.partial(self._isolated, known, shape, self._proofs[text], self._runs[text]), numbers

    def _isolated(
        self, known: tuple[Task, ...], shape: Shape, proof: RowProof, run: Run, rows: Sequence[dict[str, Any]]
    ) -> Outputs:
        """Run rows of one shape together, or in smaller batches where that would change their bits."""
        with self._lock.shared():
            now = self._placed(known, rows)
            if proof.holds(shape, now):
                return run(now)
        size = largest_size(len(rows) - 1)
        parts = [rows[start:][:size] for start in range(0, len(rows), size)]
        return [one for part in parts for one in self._isolated(known, shape, proof, run, part)]

    def _placed(self, known: tuple[Task, ...], rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Return rows with the places that their tasks have by now."""
        tasks = self.model.tasks
        if tasks is known:
            return rows
        places = {id(task): place for place, task in enumerate(tasks)}
        if any(id(known[row["task_ids"]]) not in places for row in rows):
            raise Changed
        return [{**row, "task_ids": places[id(known[row["task_ids"]])]} for row in rows]

    def _on_backend(self, run: Run) -> Run:
        def on_backend(rows: Sequence[dict[str, Any]]) -> Outputs:
            try:
                with use_backend(self._backend):
                    return run(rows)
            except BackendError as error:
                if self._backend == "auto":
                    raise
                logger.warning(
                    "an op of these tasks has no C++ implementation, so that all choose by themselves: %s", error
                )
                self._backend = "auto"
                return run(rows)

        return on_backend

    def _kind_of(self, row: dict[str, Any]) -> Hashable:
        """What decides which code a row runs."""
        task, state = self.model.tasks[row["task_ids"]], find_attachment(self.model.base)
        name = self._adapter_of(task)
        if state is None or name not in state.routable:
            return "", task.head.kind
        node = state.compositions.get(name, name)
        adapters = [state.adapters[one] for one in adapter_names(node)]
        joined = "" if isinstance(node, str) else repr(node)
        return repr([(one.configs, one.modules) for one in adapters]) + joined, task.head.kind

    def _collator(self) -> MultiTaskCollator:
        return self._collates

    def _width(self, longest: int) -> int:
        return padded_length(longest, self._limit)


class Changed(Exception):
    """A task was removed or replaced while rows waited for it."""
