"""Configs that name the nearest field when they are given one that they lack."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeVar

from .errors import ConfigError, HFAdaptError, did_you_mean, problem

__all__ = ["KnownFields"]

_Config = TypeVar("_Config", bound="KnownFields")


class KnownFields:
    """Base of dataclasses; the constructor that ``@dataclass`` writes would end in a bare ``TypeError``."""

    #: Raised for an unknown field.
    field_error: ClassVar[type[HFAdaptError]] = ConfigError

    def __new__(cls: type[_Config], *values: Any, **fields: Any) -> _Config:
        """Refuse unknown fields before ``__init__`` sees them."""
        known = [f.name for f in dataclasses.fields(cls) if f.init]  # pyright: ignore[reportArgumentType]
        for name in fields:
            if name not in known:
                raise cls.field_error(
                    problem(
                        f"unknown field {name!r}",
                        where=cls.__name__,
                        allowed=", ".join(sorted(known)),
                        try_=did_you_mean(name, known),
                    )
                )
        return object.__new__(cls)
