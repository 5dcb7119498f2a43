"""What must be said of tasks whose rows nobody can count, before they are mixed with others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, did_you_mean
from ..errors.arguments import require_mapping
from ..errors.limits import require_number

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..data.mixing import MixingStrategy
    from ..data.schedule import Schedule
    from ..data.streams import StreamTable
    from ..multitask.task import Task

__all__ = ["require_one_reader", "require_sizes", "rows_of_streams"]


def rows_of_streams(
    tasks: Sequence[Task], streams: Mapping[int, StreamTable], given: Mapping[str, int] | None
) -> dict[int, int]:
    """Return how many rows each streamed task has, by its number: as given, or as the stream says; 0 for unknown.

    Args:
        tasks: Of the mixture.
        streams: Those that stream, by number.
        given: By name.

    Raises:
        ConfigError: a name is none of a task that streams, or a number is no whole number of at least 1.
    """
    where, names = "TaskMixture(rows=...)", {tasks[index].name: index for index in streams}
    given = require_mapping("rows", given, where=where, allowed="{'web': 1_000_000}")
    for name, count in given.items():
        if name not in names:
            counted = any(task.name == name for task in tasks)
            raise ConfigError(
                f"the rows of {name!r} are counted already" if counted else f"no task {name!r}",
                where=where,
                got=repr(name),
                allowed=f"tasks whose data are an IterableDataset: {', '.join(names) or 'none'}",
                try_=did_you_mean(name, names) or "leave it out",
            )
        require_number(name, count, where=where, whole=True, least=1)
    return {index: given.get(tasks[index].name) or _own_length(table.source) for index, table in streams.items()}


def _own_length(source: Any) -> int:
    try:
        return max(0, len(source))
    except TypeError:  # most streams have no length
        return 0


def require_sizes(
    tasks: Sequence[Task], sizes: Collection[int], strategy: MixingStrategy, epoch_steps: int | None
) -> None:
    """Refuse a mixture that would have to know how many rows a stream has.

    Args:
        tasks: Of the mixture.
        sizes: Rows of each, 0 for unknown.
        strategy: Says how likely each task is.
        epoch_steps: As given.

    Raises:
        ConfigError: the strategy or the length of an epoch depends on it.
    """
    unknown = [task.name for task, size in zip(tasks, sizes, strict=True) if not size]
    if not unknown:
        return
    where, got = "TaskMixture", f"a stream without a length for {', '.join(unknown)}"
    if len(tasks) > 1 and strategy.counts_rows:
        raise ConfigError(
            "this strategy mixes tasks by how many rows they have",
            where=where,
            got=f"{strategy!r}, {got}",
            allowed="rows for each stream, or a strategy that asks for no sizes",
            try_=f"rows={{{unknown[0]!r}: 1_000_000}}, or strategy=hfadapt.RoundRobin()",
        )
    if epoch_steps is None:
        raise ConfigError(
            "nobody knows how long an epoch of a stream is",
            where=where,
            got=f"{got}, epoch_steps=None",
            allowed="the optimizer steps of an epoch, or rows for each stream",
            try_=f"epoch_steps=1000, or rows={{{unknown[0]!r}: 1_000_000}}",
        )


def require_one_reader(args: TrainingArguments, schedule: Schedule) -> None:
    """Refuse worker processes that would each read all of a stream.

    Raises:
        ConfigError: there are some, and a task streams.
    """
    if schedule.streams and args.dataloader_num_workers:
        raise ConfigError(
            "a stream is read by the process that trains: worker processes would each read all of it",
            where="TrainingArguments",
            got=f"dataloader_num_workers={args.dataloader_num_workers}",
            allowed="0, the default, with a task that streams",
            try_="leave it out",
        )
