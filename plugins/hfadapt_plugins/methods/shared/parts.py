"""Reading the parts of a method that is made of several configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from hfadapt import MethodConfig

__all__ = ["read_part"]

Config = TypeVar("Config", bound=MethodConfig)


def read_part(kind: type[Config], given: Config | Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> Config:
    """Return a config: ``given`` itself, or one built from a map of fields over ``defaults``.

    Raises:
        ConfigError: a field is unknown or holds a value that is not allowed.
    """
    if isinstance(given, kind):
        return given
    return kind.from_dict({**defaults, **(given or {})})  # type: ignore[return-value,dict-item]
