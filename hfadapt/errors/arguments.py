"""Arguments of another kind than a function takes, refused where they come in and not where they are first used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import CheckpointError, ConfigError, HFAdaptError

__all__ = ["require_folder", "require_mapping", "require_switches"]


def require_folder(folder: object, *, where: str) -> Path:
    """Return a folder to read from.

    Raises:
        CheckpointError: it is no path.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise CheckpointError(
            "no folder to load from",
            where=where,
            got=repr(folder),
            allowed="a path",
            try_="the folder that hfadapt.save wrote",
        )
    return Path(folder)


def require_switches(*, where: str, error: type[HFAdaptError] = ConfigError, **switches: object) -> None:
    """Raise unless each is true or false: by its truth ``"false"`` would be true.

    Raises:
        HFAdaptError: of the given kind.
    """
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise error(f"bad {name}", where=where, got=repr(value), allowed="True or False", try_=f"{name}=True")


def require_mapping(
    name: str,
    value: object,
    *,
    where: str,
    allowed: str,
    of: type = object,
    error: type[HFAdaptError] = ConfigError,
) -> Mapping[str, Any]:
    """Return an option that is a dictionary by name; None stands for an empty one.

    Args:
        name: Of the option.
        value: What it was given.
        where: Whose option it is.
        allowed: What the error says that it takes.
        of: What its values are.
        error: Raised.

    Raises:
        HFAdaptError: of the given kind.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and isinstance(v, of) for k, v in value.items()):
        raise error(f"bad {name}", where=where, got=repr(value)[:80], allowed=allowed, try_=f"{name}=None, the default")
    return value
