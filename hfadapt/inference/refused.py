"""What an engine refuses: one function an error, each with all its parts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..errors import DataError, TaskError, did_you_mean

__all__ = ["name_taken", "no_such_task", "nobody_reads", "not_finite", "tasks_keep_changing", "which_task"]


def tasks_keep_changing(times: int) -> DataError:
    """Texts waited while folders were replaced, so often that no answer can be given."""
    return DataError(
        "the tasks changed again and again while texts waited for them",
        where="Engine.predict",
        got=f"{times} times",
        allowed="tasks that stay while texts are answered",
        try_="the same call again, once no folder is being replaced",
    )


def name_taken(name: str, folder: Any, names: Iterable[str]) -> TaskError:
    """A task is to be added under the name of another."""
    return TaskError(
        f"there is a task {name!r}",
        where=str(folder),
        got=repr(name),
        allowed=f"a name beside {', '.join(names)}",
        try_="replace(), or called=...",
    )


def no_such_task(name: object, names: Collection[str], where: str) -> DataError:
    """A text is to be answered by a task that is not there."""
    return DataError(
        f"no task {name!r}",
        where=where,
        got=repr(name),
        allowed=", ".join(names),
        try_=did_you_mean(name, names) or "leave the tasks out, or add() the folder that has it",
    )


def not_finite(name: str) -> DataError:
    """A model gave no numbers for a text: an answer read from them would be chance."""
    return DataError(
        "the answer is not a number",
        where=f"task {name!r}",
        got="logits that are NaN or infinite",
        allowed="finite numbers",
        try_="weights from before the training diverged; or dtype='float32', where a smaller format overflows",
    )


def which_task(name: str, folder: Path, names: list[str]) -> TaskError:
    """A name is given to the only task of a folder that has several."""
    return TaskError(
        "which of the folder's tasks?",
        where=str(folder),
        got=name,
        allowed=", ".join(names),
        try_=f"the folder without a name, and then engine.add(folder, {names[0]!r}, called={name!r})",
    )


def nobody_reads(name: str, got: str) -> TaskError:
    """A head whose answers cannot be told in words or numbers."""
    return TaskError(
        "predict cannot read its answer",
        where=f"task {name!r}",
        got=got,
        allowed="heads for classes, labels, numbers, tags and spans, and bases that write",
        try_="the logits themselves: model(**inputs, task_ids=...) of a MultiTaskModel",
    )
