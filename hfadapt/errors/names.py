"""One name is a name, wherever a list of names is taken."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["names_of"]


def names_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """The names of a list, or the one that stands in its place: a string is never read letter by letter."""
    return (names,) if isinstance(names, str) else tuple(names)
