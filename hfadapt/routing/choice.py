"""What calls without ``task_ids`` use: a choice of the model's, and one of a thread's own inside ``active``."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

from .composition import Composition, Parallel
from .growth import Reach
from .steps import Step

__all__ = ["Block", "Choice", "choose", "chosen"]

_STATE = threading.local()


@dataclass(frozen=True)
class Choice:
    """What calls without ``task_ids`` use.

    Args:
        task_ids: As a call takes them: a name, a number, or a list with one a row. None without a choice, for the base
            alone, and for compositions.
        node: A composition that every row goes through.
        steps: What slots run for ``node``; of no use to ``Parallel``, whose children have steps of their own.
        reaches: Of a ``Parallel``: where each child has deltas.
        trunk: Of a piece of a ``Parallel``: what the layers below its first delta gave the pieces before it.
        base: The base alone.
        made: By the user, so that it stays when further adapters are attached.
    """

    task_ids: Any = None
    node: Composition | None = None
    steps: tuple[Step, ...] = ()
    reaches: tuple[Reach, ...] = ()
    trunk: dict[tuple[str, int], Any] | None = None
    base: bool = False
    made: bool = False

    @property
    def parallel(self) -> Parallel | None:
        """The composition, when it is a ``Parallel``."""
        return self.node if isinstance(self.node, Parallel) else None

    @property
    def shown(self) -> Any:
        """What the user chose, as he wrote it."""
        return self.task_ids if self.node is None else self.node


class Chooses(Protocol):
    """What has a choice: the state of an adapted model."""

    choice: Choice


class Block:
    """A choice of this thread's own, for the time of a ``with`` block.

    Threads that run one model each have theirs. Blocks may end in any order (generators, tasks of an event loop): each
    takes away itself alone.

    Args:
        attachment: The adapters of the model.
        choice: What calls use in the block.
    """

    def __init__(self, attachment: Chooses, choice: Choice) -> None:
        self.attachment = attachment
        self.choice = choice

    def __enter__(self) -> Block:
        _STATE.blocks = (*_blocks(), self)
        return self

    def __exit__(self, *error: object) -> None:
        _STATE.blocks = tuple(block for block in _blocks() if block is not self)


def _blocks() -> tuple[Block, ...]:
    return getattr(_STATE, "blocks", ())


def chosen(attachment: Chooses) -> Choice:
    """Return what calls of this thread use: the innermost block's choice, else the model's."""
    for block in reversed(_blocks()):
        if block.attachment is attachment:
            return block.choice
    return attachment.choice


def choose(attachment: Chooses, choice: Choice) -> None:
    """Make a choice: the innermost block's of this thread, until it ends; outside of blocks the model's."""
    for block in reversed(_blocks()):
        if block.attachment is attachment:
            block.choice = choice
            return
    attachment.choice = choice
