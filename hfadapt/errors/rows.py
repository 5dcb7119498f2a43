"""Where in a data set something is wrong: the row, and what of it, kept beside the words that say so."""

from __future__ import annotations

__all__ = ["RowPlace"]


class RowPlace(str):
    """``task 'x', train, row 3``: a place in words that still knows its row.

    Args:
        where: Task and split.
        row: Counted from 0.
        inside: What of the row: ``word 2``.
        column: Name of the column; None for that of the labels.
    """

    row: int
    inside: str
    column: str | None

    def __new__(cls, where: str, row: int, inside: str = "", column: str | None = None) -> RowPlace:
        place = super().__new__(cls, f"{where}, row {row}{', ' if inside else ''}{inside}")
        place.row, place.inside, place.column = row, inside, column
        return place
