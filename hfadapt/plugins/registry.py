"""Named things with an origin: methods, architectures, mixing strategies, regularizers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from ..errors import PluginError, RegistryError, did_you_mean

__all__ = ["Deferred", "Registry"]

T = TypeVar("T")
_NAME = re.compile(r"[a-z0-9][a-z0-9_\-]*")


class Deferred(Generic[T]):
    """A thing to register that is made when it is first asked for, so that its modules are imported then.

    Args:
        make: Imports and returns the thing.
        exports: The Python names that it brings to ``hfadapt`` (of a method: of its config class, its ``export`` and
            its ``exports``; of a class: its own name). One that is left out is not found there.
    """

    def __init__(self, make: Callable[[], T], exports: tuple[str, ...] = ()) -> None:
        self.make = make
        self.exports = exports


class Registry(Mapping[str, T], Generic[T]):
    """Maps a name to a thing and remembers which plugin brought it.

    Args:
        kind: What is registered, in the singular; used in messages.
        refuse: Says what may be registered where a thing may not, else "".
    """

    def __init__(self, kind: str, refuse: Callable[[str, object], str] = lambda name, thing: "") -> None:
        self.kind = kind
        self.refuse = refuse
        self._things: dict[str, T | Deferred[T]] = {}
        self._origins: dict[str, str] = {}
        self._current_origin = "hfadapt"

    def add(self, name: str, thing: T | Deferred[T], *, origin: str | None = None) -> None:
        """Register ``thing`` under ``name``.

        Args:
            name: Lower case letters, digits, ``_`` and ``-``.
            thing: What the name stands for, or a `Deferred` that makes it; then it is looked at once it is made.
            origin: Which plugin brings it; by default the plugin whose hook is being called.

        Raises:
            RegistryError: the name is malformed or taken, in which case both origins are named; or the thing is none
                of this kind.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RegistryError(
                f"bad {self.kind} name",
                where=f"plugin {origin or self._current_origin}",
                got=repr(name),
                allowed="lower case letters, digits, '_' and '-'",
                try_=repr(re.sub(r"[^a-z0-9_-]+", "-", str(name).lower()).strip("-_") or f"my-{self.kind}"),
            )
        origin = origin or self._current_origin
        if name in self._things:
            raise RegistryError(
                f"{self.kind} {name!r} is registered twice",
                where=f"registry of the kind {self.kind}",
                got=f"from {self._origins[name]} and from {origin}",
                allowed="one plugin a name",
                try_="rename one of them, or block a plugin with HFADAPT_BLOCK_PLUGINS",
            )
        if not isinstance(thing, Deferred):
            self._require(name, thing, origin)
        self._things[name] = thing
        self._origins[name] = origin

    def _require(self, name: str, thing: object, origin: str) -> None:
        allowed = self.refuse(name, thing)
        if allowed:
            raise RegistryError(
                f"{name!r} is no {self.kind}",
                where=f"plugin {origin}",
                got=repr(thing),
                allowed=allowed,
                try_=f"{thing.__name__}(), an object of it"
                if isinstance(thing, type)
                else "docs/hook-reference.md shows one",
            )

    def exports(self, name: str, of: Callable[[Any], Mapping[str, Any]]) -> tuple[str, ...]:
        """Return the Python names that an entry brings, without making one that is deferred.

        Args:
            name: Of the entry.
            of: Finds them in a thing that was made.
        """
        self._known(name)
        thing = self._things[name]
        return thing.exports if isinstance(thing, Deferred) else tuple(of(thing))

    def origin(self, name: str) -> str:
        """Return the plugin that registered ``name``."""
        self._known(name)
        return self._origins[name]

    def remove_origin(self, origin: str) -> None:
        """Forget everything that ``origin`` registered (a plugin that broke half-way)."""
        for name in [n for n, o in self._origins.items() if o == origin]:
            del self._things[name], self._origins[name]

    def __getitem__(self, name: str) -> T:
        self._known(name)
        thing = self._things[name]
        return self._made(name, thing) if isinstance(thing, Deferred) else thing

    def _made(self, name: str, deferred: Deferred[T]) -> T:
        """Make a deferred thing, and keep it."""
        origin = self._origins[name]
        try:
            thing = deferred.make()
        except Exception as error:
            raise PluginError(
                f"the {self.kind} {name!r} cannot be made",
                where=f"plugin {origin}",
                got=f"{type(error).__name__}: {error}",
                allowed="a Deferred whose function returns what the name stands for",
                try_="HFADAPT_BLOCK_PLUGINS leaves a plugin out",
            ) from error
        self._require(name, thing, origin)
        if self._things.get(name) is deferred:  # another thread may have made it meanwhile
            self._things[name] = thing
        return self[name]

    def _known(self, name: str) -> None:
        if not isinstance(name, str) or name not in self._things:  # a list is no name either
            raise RegistryError(
                f"unknown {self.kind} {name!r}",
                where=f"hfadapt.plugins, {self.kind}",
                got=repr(name),
                allowed=", ".join(sorted(self._things)) or f"no {self.kind} is registered",
                try_=did_you_mean(name, self._things) or "hfadapt plugins shows what is registered",
            )

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)
