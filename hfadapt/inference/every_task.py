"""Every task on one text: rows that read the same share what lies below their deltas, and keep their bits."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..multitask.every_task import run_every_task
from ..routing.growth import Reach
from ..runtime.attachment import find_attachment
from ..runtime.parallel_hooks import put_growth, reaches_of
from ..runtime.parallel_pieces import TOKENS, depths_of
from .batches import largest_size, shape_of
from .isolated import Isolated
from .predict import Run
from .proof import Outputs, RowProof

if TYPE_CHECKING:
    from ..multitask.task import Task

__all__ = ["EveryTaskAtOnce"]

#: What a row has of its own where it reads what others read.
_OF_A_TASK = ("task_ids", "labels")


class EveryTaskAtOnce(Isolated):
    """An `Isolated` predictor that runs the tasks of one text on one trunk."""

    _known_reaches: dict[str, Reach]

    def _start(self, isolation: str) -> None:
        super()._start(isolation)
        self._at_once = RowProof(self._on_backend(self._run_at_once), self._kind_of, isolation == "bits")
        if (state := find_attachment(self.model.base)) is not None:
            put_growth(self.model.base, state)

    def _planned_at_once(
        self, known: tuple[Task, ...], rows: list[dict[str, Any]], text: bool
    ) -> Iterator[tuple[Run, list[int]]]:
        """Plan batches of rows that read the same and whose deltas begin at one layer, the highest first."""
        if text:
            yield from self._planned(known, rows, text)
            return
        groups: dict[Hashable, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(_what_it_reads(row), []).append(number)
        for numbers in groups.values():
            shape = shape_of(rows[numbers[0]], self._limit)
            room = max(1, min(TOKENS, self.token_budget) // shape.tokens)
            with self._lock.shared():
                depths = self._depths(self._placed(known, [rows[number] for number in numbers]))
            # One for all batches of this text: what the first writes, the others read.
            trunk: dict[tuple[str, int], Any] = {}
            run = self._on_backend(functools.partial(self._run_at_once, trunk=trunk))
            for depth in sorted(set(depths), reverse=True):
                left = [number for number, one in zip(numbers, depths, strict=True) if one == depth]
                while left:
                    size = largest_size(min(len(left), room, self._at_once.most(shape)))
                    yield functools.partial(self._isolated, known, shape, self._at_once, run), left[:size]
                    left = left[size:]

    @torch.inference_mode()
    def _run_at_once(self, rows: Sequence[dict[str, Any]], trunk: dict[tuple[str, int], Any] | None = None) -> Outputs:
        """Logits and labels of rows that read the same."""
        if trunk is None and len(rows) == 1:  # a row alone, against which others are held
            return self._forward(rows)
        batch = dict(self._collator()(rows))
        labels, places = batch.pop("labels").numpy(), batch.pop("task_ids").tolist()
        device = next(self.model.parameters()).device
        inputs = {key: value[:1].to(device) for key, value in batch.items()}
        output = run_every_task(self.model, inputs, places, self._reaches(rows), trunk)
        assert output.logits is not None
        return list(zip(output.logits.float().cpu().numpy(), labels, strict=True))

    def _depths(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        state = find_attachment(self.model.base)
        return [0] * len(rows) if state is None else depths_of(state, self._reaches(rows))

    def _reaches(self, rows: Sequence[dict[str, Any]]) -> list[Reach]:
        """Return where the deltas of each row are, looked up once a task."""
        state, known = find_attachment(self.model.base), self._known_reaches
        if state is None:
            return []
        names = [self._adapter_of(self.model.tasks[row["task_ids"]]) for row in rows]
        missing = [name for name in dict.fromkeys(names) if name not in known]
        if missing:
            nodes = [state.compositions.get(name, name) for name in missing]
            known.update(zip(missing, reaches_of(self.model.base, state, nodes), strict=True))
        return [known[name] for name in names]


def _what_it_reads(row: dict[str, Any]) -> Hashable:
    return tuple((name, value.tobytes()) for name, value in sorted(row.items()) if name not in _OF_A_TASK)
