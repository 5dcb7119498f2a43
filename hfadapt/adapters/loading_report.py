"""What transformers reports of a base's checkpoint, where a folder brings the parameters that the checkpoint lacks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .model_source import read_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Brought", "read_base"]

#: Names of the tensors that a folder brings, each ending with the name of its parameter: known before the base is
#: loaded, or said by a function of the base, for folders whose names are understood beside the model alone.
Brought = Collection[str] | Callable[["PreTrainedModel"], Collection[str]]

_LOGGER = "transformers.modeling_utils"
_MARK = "LOAD REPORT"


def read_base(read: Callable[..., PreTrainedModel], name: Any, brought: Brought, **options: Any) -> PreTrainedModel:
    """Call a ``from_pretrained`` for the base of a folder, as `read_pretrained` does.

    A parameter that the base's checkpoint lacks and the folder brings, such as a trained head, is not at its start for
    long. A report that names no others is kept back: it would say that they were newly initialised.

    Args:
        read: The method.
        name: Of the base.
        brought: See `Brought`.
        options: Of `read_pretrained` and of the method.

    Raises:
        HFAdaptError: see `read_pretrained`; or ``brought`` raised it.
    """
    if not brought or "output_loading_info" in options:
        return read_pretrained(read, name, **options)
    with _held() as records:
        # the method returns a pair then
        model, info = read_pretrained(read, name, output_loading_info=True, **options)  # pyright: ignore[reportGeneralTypeIssues]
        missing, names = info["missing_keys"], brought(model) if callable(brought) else brought
        if missing and not info["mismatched_keys"] and all(_brings(names, key) for key in missing):
            records.clear()
    return model


def _brings(brought: Collection[str], key: str) -> bool:
    return any(name == key or name.endswith(f".{key}") for name in brought)


@contextmanager
def _held() -> Iterator[list[logging.LogRecord]]:
    """Keep back the reports of this thread; what is left in the list at the end, also of an error, is logged then."""
    logger, mine = logging.getLogger(_LOGGER), threading.get_ident()
    records: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        held = record.thread == mine and _MARK in record.getMessage()
        if held:
            records.append(record)
        return not held

    logger.addFilter(hold)
    try:
        yield records
    finally:
        logger.removeFilter(hold)
        for record in records:
            logger.handle(record)
