"""Notices a Trainer whose data says which adapter each row uses, and whose batches do not; or that trains nothing."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Collection, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from ..errors import RoutingError

if TYPE_CHECKING:
    from .attachment import Watched

__all__ = ["check_column", "check_that_something_trains", "note_taken_column"]

logger = logging.getLogger(__name__)

# The methods of Trainer that run a model, and the name under which each has its data.
_DATA_OF = {"training_step": "train_dataset", "evaluate": "eval_dataset", "predict": "test_dataset"}

# What Trainers were given with the column and took it out of, as packing does: "train_dataset", "eval_dataset".
_took: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
# Trainers of which the log says that nobody saw their data.
_told: weakref.WeakSet[Any] = weakref.WeakSet()


def check_column(names: Collection[str] = ()) -> None:
    """Raise when a Trainer calls the model without the column ``task_ids`` that its dataset has, or had.

    Trainer keeps the columns that the model's signature names, and so this one; but subclasses have lists of their own
    (TRL's), and collators drop what they do not know. Every row would train, or be scored with, the active adapter.
    Neither the model nor a callback is told of the Trainer's data, so the Trainer is looked up among the callers. A
    model whose class says ``accepts_loss_kwargs`` is not asked for its signature (see ``note_taken_column``): where
    such a Trainer packs rows and there are several adapters, the log says that the rows use what is active.

    Args:
        names: The adapters that rows could choose from.

    Raises:
        RoutingError: the column was lost on the way.
    """
    frame, trainer = next(_trainers_among_callers(_DATA_OF), (None, None))
    if frame is None or trainer is None:
        return
    name = _DATA_OF[frame.f_code.co_name]
    data = frame.f_locals.get(name)
    where = f"{type(trainer).__name__}.{frame.f_code.co_name}"
    got = f"batches of {type(trainer.data_collator).__name__} without it"
    if _has_column(getattr(trainer, name, None) if data is None else data):
        raise RoutingError(
            "the dataset has a column 'task_ids', which did not reach the model",
            where=where,
            got=got,
            allowed="batches with 'task_ids', one a row",
            try_="a data_collator that returns 'task_ids', with remove_unused_columns=False; or remove the "
            "column to let every row use what is active",
        )
    took = _took.get(trainer, set())
    if name in took or (took and name != "train_dataset"):
        raise RoutingError(
            "the data had a column 'task_ids', which the trainer took out before the model saw it",
            where=where,
            got=f"{got}, of rows that were packed or made anew",
            allowed="rows that keep their 'task_ids'",
            try_="packing=False with a data_collator that returns 'task_ids', and remove_unused_columns=False; or "
            "remove the column, to train what is active on every row",
        )
    if len(names) > 1 and trainer not in _told and _packs_unseen(trainer):
        _told.add(trainer)
        logger.warning(
            "%s packs rows, and with %s nothing shows whether these had a column 'task_ids': every row uses what is "
            "active of the adapters %s. packing=False with a data_collator that returns 'task_ids' lets rows choose.",
            where,
            type(trainer.model).__name__,
            ", ".join(names),
        )


def note_taken_column() -> None:
    """Note a Trainer that is being made and has no column ``task_ids`` left of the data that it was given.

    Packing makes new rows of tokens alone before Trainer's own constructor sees them, and afterwards nothing tells them
    from rows that never had the column. That constructor asks for the signature of the model's ``forward``; those of
    the subclasses around it still hold a row, or the data, as it was given.
    """
    making: Any = None
    lost: set[str] = set()
    for frame, trainer in _trainers_among_callers(("__init__",)):
        if making is None:
            making = trainer
            kept = {name: frame.f_locals.get(name) for name in ("train_dataset", "eval_dataset")}
            lost = {name for name, data in kept.items() if data is not None and not _has_column(data)}
        elif trainer is making:
            given = [key for key, value in list(frame.f_locals.items()) if _has_column(value) or _is_row(value)]
            found = {"eval_dataset" if "eval" in key else "train_dataset" for key in given} & lost
            if found:
                _took.setdefault(trainer, set()).update(found)


def check_that_something_trains(watch: Watched | None) -> None:
    """Raise when a Trainer trains a model whose base is frozen, without any adapter: every gradient would be zero.

    Args:
        watch: Knows the model, of which a call is about to run the base alone.

    Raises:
        RoutingError: no parameter of the base trains either.
    """
    if watch is None or not torch.is_grad_enabled():
        return
    _, trainer = next(_trainers_among_callers(("training_step",)), (None, None))
    model: Any = watch.model
    if getattr(trainer, "model", None) is not model:
        return
    if not any(p.requires_grad for name, p in model.named_parameters() if ".hfadapt" not in f".{name}"):
        raise RoutingError(
            "a training step without any adapter, over a base that does not train: nothing would learn",
            where=f"{type(trainer).__name__}.training_step",
            got="no task_ids, and nothing active",
            allowed="an adapter in the step, or parameters of the base that train",
            try_="hfadapt.activate(model, name), or a column 'task_ids' in the data",
        )


def _trainers_among_callers(methods: Collection[str]) -> Iterator[tuple[FrameType, Any]]:
    """Yield the frames of a Trainer's methods of these names, innermost first, and the Trainer."""
    module = sys.modules.get("transformers.trainer")
    kind: Any = () if module is None else module.Trainer  # nothing is an instance of no class
    frame = None if module is None else sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in methods:
            trainer = frame.f_locals.get("self")
            if trainer is not None and isinstance(trainer, kind):
                yield frame, trainer
        frame = frame.f_back


def _packs_unseen(trainer: Any) -> bool:
    """Whether a Trainer makes new rows of those it was given, for a model that it does not ask for its signature."""
    packs = any(getattr(trainer.args, option, None) for option in ("packing", "padding_free"))
    return packs and hasattr(trainer.model, "accepts_loss_kwargs")


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and "task_ids" in value


def _has_column(data: Any) -> bool:
    if isinstance(data, Mapping):  # several evaluation sets
        return any(_has_column(one) for one in data.values())
    columns = getattr(data, "column_names", None)
    if columns is None and isinstance(data, (list, tuple)) and data and isinstance(data[0], Mapping):
        columns = data[0]
    return columns is not None and "task_ids" in columns
