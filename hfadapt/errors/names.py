"""One name is a name, wherever a list of names is taken."""

from __future__ import annotations

from collections.abc import Iterable

from . import HFAdaptError

__all__ = ["names_of"]


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
