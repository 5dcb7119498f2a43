"""Who may change the tasks of a server, and from which folders."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...errors import ConfigError
from .refusals import BadRequest, BadToken

__all__ = ["Admin"]

_SHORTEST = 16


@dataclass(frozen=True)
class Admin:
    """Lets those who know a token add, replace and remove tasks, with folders below one folder.

    Args:
        root: Below which every folder must lie, with all that it holds, links followed.
        token: At least 16 characters, all of ASCII.

    Raises:
        ConfigError: there is no such folder, or the token could be guessed.
    """

    root: Path
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        root = Path(self.root)
        if not root.is_dir():
            raise ConfigError(
                "no such folder",
                where="Admin.root",
                got=str(root),
                allowed="a folder",
                try_="mkdir, then copy adapters",
            )
        if not isinstance(self.token, str) or len(self.token) < _SHORTEST or not self.token.isascii():
            raise ConfigError(
                "a token that could be guessed",
                where="Admin.token",
                got="what is no string" if not isinstance(self.token, str) else f"{len(self.token)} characters",
                allowed=f"{_SHORTEST} characters of ASCII or more",
                try_="python -c 'import secrets; print(secrets.token_urlsafe())'",
            )
        object.__setattr__(self, "root", root.resolve())

    def check(self, header: str | None) -> None:
        """Raise unless a request's ``Authorization`` header holds the token.

        Raises:
            BadToken: it does not.
        """
        scheme, _, given = (header or "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        if scheme.lower() != "bearer" or not right:
            raise BadToken(
                "the token is missing or wrong",
                where="header Authorization",
                got="none" if header is None else "another one",
                allowed="Bearer TOKEN",
                try_="the token with which the server was started",
            )

    def folder(self, given: str) -> Path:
        """Return the folder that a request names.

        Args:
            given: Relative to the root.

        Raises:
            BadRequest: it is not there, or it or something in it lies elsewhere.
        """
        where, allowed = "folder", "the name of a folder below the root that the server was started with"
        parts = PurePosixPath(given).parts
        escapes = not parts or "\0" in given or "\\" in given or given.startswith("/") or ".." in parts
        place = self.root if escapes else self.root / given
        # What lies elsewhere is not looked at, so that nobody learns of it whether it is there.
        if escapes or not self._inside(place):
            raise BadRequest("a folder that may not be read", where=where, got=repr(given)[:200], allowed=allowed)
        place = Path(os.path.realpath(place))
        if not os.path.isdir(place):
            raise BadRequest("no such folder", where=where, got=repr(given)[:200], allowed=allowed)
        for folder, folders, files in os.walk(place):  # which goes into no folder that is a link
            for path in (Path(folder, name) for name in (*folders, *files)):
                if not self._inside(path) or (path.is_symlink() and path.is_dir()):
                    got = str(path.relative_to(self.root))[:200]
                    raise BadRequest(
                        "a link out of the root, or to a folder",
                        where=where,
                        got=got,
                        allowed="files, and links to files below the root",
                        try_="a copy of what it leads to",
                    )
        return place

    def _inside(self, path: Path) -> bool:
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):
            return False
        return real != self.root and real.is_relative_to(self.root)
