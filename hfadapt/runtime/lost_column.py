"""Notices a Trainer whose data says which adapter each row uses, and whose batches do not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..errors import RoutingError

__all__ = ["check_column"]

# The methods of Trainer that run a model, and the name under which each has its data.
_DATA_OF = {"training_step": "train_dataset", "evaluate": "eval_dataset", "predict": "test_dataset"}


def check_column() -> None:
    """Raise when a Trainer calls the model without the column ``task_ids`` that its dataset has.

    Trainer keeps the columns that the model's signature names, and so this one; but subclasses have lists of their own
    (TRL's), and collators drop what they do not know. Every row would train, or be scored with, the active adapter.
    Neither the model nor a callback is told of the Trainer's data, so the Trainer is looked up among the callers.

    Raises:
        RoutingError: the column was lost on the way.
    """
    module = sys.modules.get("transformers.trainer")
    frame = None if module is None else sys._getframe(1)
    while frame is not None:
        name = _DATA_OF.get(frame.f_code.co_name)
        trainer = frame.f_locals.get("self") if name is not None else None
        if name is not None and trainer is not None and isinstance(trainer, module.Trainer):  # type: ignore[union-attr]
            data = frame.f_locals.get(name)
            if _has_column(getattr(trainer, name, None) if data is None else data):
                raise RoutingError(
                    "the dataset has a column 'task_ids', which did not reach the model",
                    where=f"{type(trainer).__name__}.{frame.f_code.co_name}",
                    got=f"batches of {type(trainer.data_collator).__name__} without it",
                    try_="a data_collator that returns 'task_ids', with remove_unused_columns=False; or remove the "
                    "column to let every row use what is active",
                )
            return
        frame = frame.f_back


def _has_column(data: Any) -> bool:
    if isinstance(data, Mapping):  # several evaluation sets
        return any(_has_column(one) for one in data.values())
    columns = getattr(data, "column_names", None)
    if columns is None and isinstance(data, (list, tuple)) and data and isinstance(data[0], Mapping):
        columns = data[0]
    return columns is not None and "task_ids" in columns
