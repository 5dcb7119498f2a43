"""What callers hand in as texts and names, looked at before anything is done with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from ..errors import DataError, TaskError

__all__ = ["listed", "require_names", "require_text"]


def listed(given: Any, what: str) -> tuple[Any, ...]:
    """Return what is given as a list, or the one string that stands in its place.

    Bytes are no list of numbers here, and a set or a mapping has no order in which answers could come.

    Args:
        given: By the caller.
        what: For the error: ``"texts"``.

    Raises:
        DataError: it is neither.
    """
    if isinstance(given, str):
        return (given,)
    if isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray, memoryview, Mapping, Set)):
        try:
            return tuple(given)
        except TypeError:  # of what calls itself iterable, as a tensor without dimensions
            pass
    raise DataError(
        "neither a text nor a list of texts",
        where=what,
        got=repr(given)[:80],
        allowed="a string, or strings in order",
        try_=f"{what}=[...], a list",
    )


def require_text(text: Any, number: int, most: int) -> None:
    """Raise unless something is a text that may be read.

    Args:
        text: What is given as one.
        number: Its place among the texts, for the error.
        most: How many characters it may have.

    Raises:
        DataError: it is no string, holds half a character, or is too long.
    """
    where = f"text {number}"
    if not isinstance(text, str):
        raise DataError("not a text", where=where, got=repr(text)[:80], allowed="a string", try_="str(text)")
    if len(text) > most:
        got, allowed = f"{len(text):,} characters", f"at most {most:,}"
        raise DataError("the text is too long", where=where, got=got, allowed=allowed, try_="cut it into parts")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "not a text",
            where=where,
            got=f"half a character: {error}",
            allowed="Unicode",
            try_="text.encode('utf-8', 'replace').decode()",
        ) from error


def require_names(where: str, **names: Any) -> None:
    """Raise unless each is a name, or None.

    Raises:
        TaskError: one is neither.
    """
    for what, name in names.items():
        if name is not None and not isinstance(name, str):
            raise TaskError(
                f"bad {what}", where=where, got=repr(name)[:80], allowed="a string, or None", try_=f"{what}='topic'"
            )
