"""The proximal point of SMART: a teacher that follows the model, for the Bregman term (Jiang et al. 2020, section 3.2).

The teacher holds what trains and nothing else; the frozen part of the model is the model's own. Its answers come from
the model itself, with the teacher's tensors in place of its parameters.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import CheckpointError
from ...errors.full_disk import writing

__all__ = ["FILE", "Proximal", "Teacher", "momentum_at"]

#: In a checkpoint of Trainer.
FILE = "regularizer_teacher.safetensors"


@dataclass(frozen=True)
class Proximal:
    """How a teacher follows.

    Args:
        momentum: beta of ``theta~ <- (1 - beta) theta + beta theta~``, early and late; ``(0, 0)`` is the vanilla
            proximal point, the last iterate itself.
        switch: Up to which share of the run the early one holds; a whole number above 1 counts updates of the teacher.
        solves: Optimizer steps between two updates of the teacher.
    """

    momentum: tuple[float, float]
    switch: float
    solves: int


def momentum_at(update: int, updates: int, proximal: Proximal) -> float:
    """Return beta of the teacher's ``update``-th update of ``updates``, counted from 1."""
    early = proximal.switch if proximal.switch > 1 else proximal.switch * updates
    return proximal.momentum[0 if update <= early else 1]


class Teacher:
    """A copy of what trains in a model, moved after its updates.

    Args:
        module: The model without wrappers; the teacher starts as it is.
        proximal: How it follows.
        steps: Optimizer steps of the run.
    """

    def __init__(self, module: nn.Module, proximal: Proximal, steps: int) -> None:
        self.module = module
        self.proximal = proximal
        self.updates = max(1, steps // proximal.solves)
        self.steps_seen = 0
        self.tensors = {name: one.detach().clone() for name, one in self._followed().items()}

    def _followed(self) -> dict[str, Tensor]:
        """What trains, and what the model changes of itself (running means)."""
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        buffers = {name: b for name, b in self.module.named_buffers() if b.is_floating_point() and b.numel()}
        return {**parameters, **buffers}

    @contextlib.contextmanager
    def teaching(self) -> Iterator[None]:
        """Put the teacher's tensors in the model's place; the model's come back on every way out."""
        held = self._followed()
        own = {name: one.data for name, one in held.items()}
        try:
            for name, one in held.items():
                one.data = self.tensors[name]
            yield
        finally:
            for name, one in held.items():
                one.data = own[name]

    @torch.no_grad()
    def follow(self) -> None:
        """Move after an optimizer step: ``theta~ <- (1 - beta) theta + beta theta~``, every ``solves`` steps."""
        self.steps_seen += 1
        if self.steps_seen % self.proximal.solves:
            return
        beta = momentum_at(self.steps_seen // self.proximal.solves, self.updates, self.proximal)
        for name, one in self._followed().items():
            mine = self.tensors[name]
            # a buffer is copied as it is: running means are no part of the proximal point
            if isinstance(one, nn.Parameter):
                mine.mul_(beta).add_(one.detach(), alpha=1 - beta)
            else:
                mine.copy_(one)

    def save(self, folder: Path) -> None:
        """Write the teacher into a checkpoint of Trainer."""
        told = {"steps_seen": self.steps_seen, "updates": self.updates}
        tensors = {name: one.contiguous() for name, one in self.tensors.items()}
        part = folder / f"{FILE}.part"
        try:
            with writing(folder / FILE, sum(tensor.nbytes for tensor in tensors.values())):
                save_file(tensors, str(part), metadata={"teacher": json.dumps(told)})
            part.replace(folder / FILE)
        finally:
            part.unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Read a teacher that ``save`` wrote.

        Raises:
            CheckpointError: there is none, it cannot be read, or it is of another model.
        """
        told, tensors = read_teacher(folder)
        require_same(self.tensors, tensors, folder)
        for name, one in self.tensors.items():
            one.copy_(tensors[name])
        self.steps_seen = told


def read_teacher(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """Return how many steps the teacher of a checkpoint has seen, and its tensors.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(
            "the checkpoint holds no teacher, so this run would not go on where it stopped",
            where=str(folder),
            got=f"no {FILE}",
            allowed=f"a checkpoint that a run with the same regularizer wrote, with {FILE}",
            try_="resume from an older checkpoint that holds it, or start anew",
        )
    try:
        with safe_open(str(path), "pt") as file:
            told: dict[str, Any] = json.loads((file.metadata() or {})["teacher"])
            return int(told["steps_seen"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except Exception as error:
        raise CheckpointError(
            "the teacher cannot be read",
            where=str(path),
            got=str(error),
            allowed=f"a whole {FILE}, as a run with this regularizer writes it",
            try_="resume from the checkpoint before, or start anew",
        ) from error


def require_same(mine: dict[str, Tensor], found: dict[str, Tensor], folder: Path) -> None:
    """Refuse a teacher whose tensors are not those that train here.

    Raises:
        CheckpointError: naming what differs.
    """
    wrong = [f"{n}: not in the teacher" for n in mine if n not in found]
    wrong += [f"{n}: not trained here" for n in found if n not in mine]
    for name in mine.keys() & found.keys():
        ours, theirs = mine[name], found[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            wrong.append(f"{name}: {list(theirs.shape)} {theirs.dtype}, here {list(ours.shape)} {ours.dtype}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            "the teacher is of another model",
            where=str(folder / FILE),
            got="; ".join(sorted(wrong)[:3]) + more,
            allowed="the tensors that train in this model, by name, shape and dtype",
            try_="resume with the model, method and tasks that wrote this checkpoint",
        )
