"""What is taken for a list of names, and what to call something whose name is taken."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

from . import HFAdaptError

__all__ = ["free_name", "names_of"]


def names_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """The names of a list, or the one that stands in its place: a string is never read letter by letter.

    Raises:
        HFAdaptError: it is neither.
    """
    if isinstance(names, str):
        return (names,)
    try:
        return tuple(names)
    except TypeError:  # also of what calls itself iterable, as a tensor without dimensions
        raise HFAdaptError(
            "no names", where="names", got=repr(names), allowed="a name, or a list of names", try_="['a', 'b']"
        ) from None


def free_name(name: str, taken: Collection[str]) -> str:
    """The first of ``name2``, ``name3`` and so on that is not taken."""
    return next(found for number in itertools.count(2) if (found := f"{name}{number}") not in taken)
