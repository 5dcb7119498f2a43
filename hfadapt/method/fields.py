"""Configs that name the nearest field when given one that they lack, and that take only values of the fields' kinds."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from ..errors import ConfigError, HFAdaptError, did_you_mean
from ..errors.limits import finite

__all__ = ["KnownFields", "default_as_text"]

_Config = TypeVar("_Config", bound="KnownFields")

#: How fields that hold several names are annotated.
_NAMES = re.compile(r"(?:tuple|list|Sequence|Collection|Iterable)\[str(?:, \.\.\.)?\]")


class KnownFields:
    """Base of dataclasses; the constructor that ``@dataclass`` writes would end in a bare ``TypeError``."""

    #: Raised for an unknown field, or for a value of another kind than its field.
    field_error: ClassVar[type[HFAdaptError]] = ConfigError

    def __new__(cls: type[_Config], *values: Any, **fields: Any) -> _Config:
        """Refuse unknown fields, and values of another kind than theirs, before ``__init__`` sees them."""
        known = {f.name: f for f in dataclasses.fields(cls) if f.init}  # pyright: ignore[reportArgumentType]
        for name in fields:
            if name not in known:
                raise cls.field_error(
                    f"unknown field {name!r}",
                    where=cls.__name__,
                    got=name,
                    allowed=", ".join(sorted(known)),
                    try_=did_you_mean(name, known) or "leave it out",
                )
        by_place = [f.name for f in known.values() if not f.kw_only]
        for name, value in {**dict(zip(by_place, values, strict=False)), **fields}.items():
            allowed = _refused(_kinds(known[name].type), value)
            if allowed:
                where = f"{cls.__name__}({name}=...)"
                raise cls.field_error(
                    f"bad {name}", where=where, got=repr(value), allowed=allowed, try_=default_as_text(cls, name)
                )
        return object.__new__(cls)


def default_as_text(cls: type, name: str) -> str:
    """What a field holds that nobody sets, as advice: ``r=8, the default``; "give one" for a field that must be set."""
    found = next(f for f in dataclasses.fields(cls) if f.name == name)  # pyright: ignore[reportArgumentType]
    made = found.default_factory
    default = made() if made is not dataclasses.MISSING else found.default
    return "give one" if default is dataclasses.MISSING else f"{name}={default!r}, the default"


def _refused(kinds: frozenset[str], value: object) -> str:
    """What a field of these kinds allows, where ``value`` is no such thing; "" where it is, or no kind here is known.

    Each config still says which range it takes, and which names.
    """
    if value is None and "None" in kinds:
        return ""
    others = kinds - {"None"}
    if others == {"bool"}:
        # by its truth anything would do: "no", 0 and an empty list too
        return "" if isinstance(value, bool) else " or ".join(["True or False", *sorted(kinds & {"None"})])
    if others and all(kind == "str" or _NAMES.fullmatch(kind) for kind in others) and others != {"str"}:
        return "" if _are_names(value) else "a name or a sequence of names"
    return _refused_number(kinds, value)


def _are_names(value: object) -> bool:
    """Whether it is a string or a collection of strings; an iterator is used up by a look at it, and passes."""
    if isinstance(value, (str, Iterator)):
        return True
    try:
        return isinstance(value, Iterable) and not isinstance(value, Mapping) and all(isinstance(n, str) for n in value)
    except TypeError:  # a tensor without dimensions
        return False


def _refused_number(kinds: frozenset[str], value: object) -> str:
    """What a field of numbers allows; infinite and NaN pass most comparisons that say which range it takes."""
    wanted = kinds & {"int", "float"}
    if not wanted:
        return ""
    if wanted == kinds - {"None"} or isinstance(value, (numbers.Real, complex)):
        if not finite(value) and not (isinstance(value, bool) and "bool" in kinds):
            words = "a finite number" if "float" in wanted else "a whole number"
            return " or ".join([words, *sorted(kinds - wanted)])
        if wanted == {"int"} and not isinstance(value, numbers.Integral):
            return " or ".join(["a whole number", *sorted(kinds - wanted)])
    return ""


@functools.cache
def _kinds(annotation: Any) -> frozenset[str]:
    """The members of a union, as words; annotations are strings where their module postpones them."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None)
    if text is None or (not isinstance(annotation, str) and not isinstance(annotation, type)):
        text = str(annotation)
    text = text.strip()
    if text.startswith(("Optional[", "typing.Optional[")) and text.endswith("]"):
        text = f"{text.partition('[')[2][:-1]} | None"
    return frozenset(part.strip() for part in text.split("|"))
