"""Named things with an origin: methods, architectures, mixing strategies, regularizers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from ..errors import RegistryError, did_you_mean

__all__ = ["Registry"]

T = TypeVar("T")
_NAME = re.compile(r"[a-z0-9][a-z0-9_\-]*")


class Registry(Mapping[str, T], Generic[T]):
    """Maps a name to a thing and remembers which plugin brought it.

    Args:
        kind: What is registered, in the singular; used in messages.
        refuse: Says what may be registered where a thing may not, else "".
    """

    def __init__(self, kind: str, refuse: Callable[[str, object], str] = lambda name, thing: "") -> None:
        self.kind = kind
        self.refuse = refuse
        self._things: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._current_origin = "hfadapt"

    def add(self, name: str, thing: T, *, origin: str | None = None) -> None:
        """Register ``thing`` under ``name``.

        Args:
            name: Lower case letters, digits, ``_`` and ``-``.
            thing: What the name stands for.
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
        self._things[name] = thing
        self._origins[name] = origin

    def origin(self, name: str) -> str:
        """Return the plugin that registered ``name``."""
        self[name]
        return self._origins[name]

    def remove_origin(self, origin: str) -> None:
        """Forget everything that ``origin`` registered (a plugin that broke half-way)."""
        for name in [n for n, o in self._origins.items() if o == origin]:
            del self._things[name], self._origins[name]

    def __getitem__(self, name: str) -> T:
        try:
            return self._things[name]
        except (KeyError, TypeError):  # a list is no name either
            raise RegistryError(
                f"unknown {self.kind} {name!r}",
                where=f"hfadapt.plugins, {self.kind}",
                got=repr(name),
                allowed=", ".join(sorted(self._things)) or f"no {self.kind} is registered",
                try_=did_you_mean(name, self._things) or "hfadapt plugins shows what is registered",
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)
