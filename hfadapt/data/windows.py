"""The windows of contexts that ``Span`` reads, and their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..multitask.heads import IGNORE
from ..multitask.heads.span import Window

if TYPE_CHECKING:
    from transformers import BatchEncoding

    from .columns import Columns

__all__ = ["check_stride", "span_tokens", "window_labels"]


def span_tokens(encoded: BatchEncoding, row: int, start: int, length: int) -> tuple[int, int] | None:
    """Return first and last token of an answer given in characters; ``None`` when it is not in the row."""
    if start < 0 or length == 0:
        return None
    first, last = (encoded.char_to_token(row, position, 1) for position in (start, start + length - 1))
    return None if first is None or last is None else (first, last)


def check_stride(stride: int, limit: int, questions: list[list[int]], special: int, where: str) -> None:
    """Raise ``DataError`` when a question leaves no room for a window that moves on."""
    longest = max(map(len, questions), default=0)
    if limit - longest - special <= stride:
        raise DataError(
            "a question leaves too little room for the windows of its context",
            where=where,
            got=f"{longest} tokens of question, doc_stride {stride}, {limit} tokens in all",
            allowed=f"doc_stride below {max(limit - longest - special, 0)}",
            try_="a larger max_length, or a smaller doc_stride",
        )


def window_labels(columns: Columns, encoded: BatchEncoding, stride: int | None) -> list[np.ndarray]:
    """Return a ``Window`` for each window of each row, as float32 vectors; one a row without a stride."""
    labels: list[np.ndarray] = []
    previous, offset, size = -1, 0, 0
    examples = range(len(columns)) if stride is None else encoded["overflow_to_sample_mapping"]
    for row, example in enumerate(examples):
        parts = encoded.sequence_ids(row)
        context = [token for token, part in enumerate(parts) if part == 1]
        first, last = (context[0], context[-1]) if context else (0, -1)
        offset = offset + size - (stride or 0) if example == previous else 0
        previous, size = example, len(context)
        cls = next((token for token, part in enumerate(parts) if part is None), 0)
        answer, answered = (IGNORE, IGNORE), 0
        if columns.labels is not None:
            start, length = map(int, columns.labels[example])
            answer, answered = span_tokens(encoded, row, start, length) or (cls, cls), int(length > 0)
        labels.append(np.array(Window(*answer, cls, first, last, example, offset, answered), np.float32))
    return labels
