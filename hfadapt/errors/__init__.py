"""Errors of the core: each says what failed, where, what was given, what is allowed and what to try."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "ArchitectureError",
    "AttachError",
    "CheckpointError",
    "CompositionError",
    "ConfigError",
    "DataError",
    "HFAdaptError",
    "PluginError",
    "RegistryError",
    "RoutingError",
    "TaskError",
    "did_you_mean",
    "problem",
    "raise_all",
]


class HFAdaptError(Exception):
    """Base of every error that hfadapt raises on purpose.

    Args:
        what: What failed; the whole message, where the rest is left out.
        where: In which place: a field, a task, a file, a layer.
        got: What was given there.
        allowed: What may stand there.
        try_: What to do.
    """

    #: The single errors, where this one lists several.
    found: tuple[HFAdaptError, ...] = ()

    def __init__(
        self, what: str = "", *, where: object = "", got: object = None, allowed: object = None, try_: str = ""
    ) -> None:
        # torch.compile traces no call of an exception's own `__init__`
        self.args = (problem(what, where=str(where), got=got, allowed=allowed, try_=try_),)
        self.what, self.where, self.got, self.allowed, self.try_ = what, where, got, allowed, try_

    def at(self, where: object) -> Self:
        """The same error in a place that says more."""
        return type(self)(self.what, where=where, got=self.got, allowed=self.allowed, try_=self.try_)


class ConfigError(HFAdaptError, ValueError):
    """A method config, recipe or option holds a value that is not allowed."""


class RegistryError(HFAdaptError, LookupError):
    """A name is not registered, or is registered twice."""


class PluginError(HFAdaptError):
    """A plugin could not be loaded and strict loading was asked for."""


class ArchitectureError(HFAdaptError):
    """A model's structure is not known well enough to place deltas in it."""


class AttachError(HFAdaptError):
    """A method cannot be attached to this model as asked."""


class RoutingError(HFAdaptError):
    """It is not clear which adapter a row of the batch belongs to."""


class CompositionError(HFAdaptError, ValueError):
    """A composition of adapters is not valid."""


class CheckpointError(HFAdaptError):
    """A saved adapter cannot be read, or does not belong to this model."""


class TaskError(HFAdaptError, ValueError):
    """A task, its head or its labels are not usable as given."""


class DataError(HFAdaptError, ValueError):
    """A data set lacks what its task needs."""


def raise_all(
    found: Iterable[HFAdaptError], kind: type[HFAdaptError] = DataError, what: str = "problems in the data"
) -> None:
    """Raise what was found: nothing, the one error, or one that lists all and holds each in ``found``.

    Args:
        found: The errors; lists among them are taken apart.
        kind: Of the list.
        what: There are several of, in words.
    """
    each = [one for error in found for one in error.found or (error,)]
    if len(each) == 1:
        raise each[0]
    if each:
        error = kind("\n".join([f"{len(each)} {what}", *(f"  {one}" for one in each)]))
        error.found = tuple(each)
        raise error


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'?"`` for the nearest of ``names``, or an empty string, as for what is no name."""
    if not isinstance(name, str):
        return ""
    import difflib  # which `import hfadapt` does without

    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else ""


def problem(what: str, *, where: str = "", got: object = None, allowed: object = None, try_: str = "") -> str:
    """Build the message of an error: what, where, got, allowed, try."""
    parts = [f"{where}: {what}" if where else what]
    if got is not None:
        parts.append(f"got: {got}")
    if allowed is not None:
        parts.append(f"allowed: {allowed}")
    if try_:
        parts.append(f"try: {try_}")
    return "; ".join(parts)
