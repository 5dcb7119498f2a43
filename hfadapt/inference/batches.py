"""Which rows share a forward pass, and how wide it is padded.

How a row's sums round may hang on how far it is padded and on whether anything is masked. Both are therefore made the
row's own: it is padded to a length that follows from its own, and shares a forward only with rows of that length, those
that fill it whole apart from those that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import MultiTaskCollator

__all__ = ["LENGTHS", "PaddedCollator", "Shape", "largest_size", "padded_length", "plan", "shape_of"]

#: Padded lengths in tokens; longer rows are padded to a multiple of the last.
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
#: Rows a forward: few numbers, so that each shape of batch is met again soon.
_SIZES = (1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)


@dataclass(frozen=True)
class Shape:
    """What the rows of a forward have in common.

    Args:
        widths: Padded tokens of each text that is encoded on its own.
        full: Whether the rows fill it, text by text.
    """

    widths: tuple[int, ...]
    full: tuple[bool, ...]

    @property
    def tokens(self) -> int:
        """Padded tokens of a row."""
        return sum(self.widths)


def padded_length(tokens: int, limit: int) -> int:
    """Return the length to which a text of so many tokens is padded.

    Args:
        tokens: At least 1.
        limit: What the model reads at most; a text is never padded beyond it.
    """
    fits = next((length for length in LENGTHS if length >= tokens), -(-tokens // LENGTHS[-1]) * LENGTHS[-1])
    return max(tokens, min(fits, limit))


def shape_of(row: dict[str, Any], limit: int) -> Shape:
    """Return the shape of the batches that a row may be in."""
    lengths = [len(row[name]) for name in ("input_ids", "pair_input_ids") if name in row]
    widths = tuple(padded_length(length, limit) for length in lengths)
    return Shape(widths, tuple(width == length for width, length in zip(widths, lengths, strict=True)))


def largest_size(rows: int) -> int:
    """Return the largest number of rows of a forward that is at most ``rows``, which is 1 or more."""
    return next(size for size in _SIZES if size <= rows)


def plan(
    rows: Sequence[dict[str, Any]], limit: int, budget: int, most: Callable[[Shape], int]
) -> Iterator[tuple[Shape, list[int]]]:
    """Yield batches, each the numbers of some rows of one shape, the longest first.

    Args:
        rows: Tokenised rows.
        limit: What the model reads at most.
        budget: Padded tokens a batch; a longer row is a batch of its own.
        most: How many rows of a shape a batch may have beside that, asked for each batch.
    """
    groups: dict[Shape, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(shape_of(row, limit), []).append(number)
    for shape in sorted(groups, key=lambda shape: (-shape.tokens, shape.widths, shape.full)):
        left = groups[shape]
        while left:
            size = largest_size(max(1, min(len(left), budget // shape.tokens, most(shape))))
            yield shape, left[:size]
            left = left[size:]


class PaddedCollator(MultiTaskCollator):
    """Pads every batch to the length that its rows are padded to alone.

    Args:
        places: As of `MultiTaskCollator`.
        tokenizer: As of `MultiTaskCollator`.
        limit: What the model reads at most.
    """

    def __init__(self, places: Sequence[str], tokenizer: Any, limit: int) -> None:
        super().__init__(places, tokenizer)
        self.limit = limit

    def width_for(self, longest: int) -> int:
        """See ``MultiTaskCollator``."""
        return padded_length(longest, self.limit)
