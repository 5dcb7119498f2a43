"""Bodies of requests, read whole before anything else sees them: not too large, and not too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .limits import Limits
from .refusals import Refused, TooLarge, TooSlow

__all__ = ["LimitedBody"]


class LimitedBody:
    """Hands an application requests whose bodies are there.

    Args:
        app: As of ASGI.
        limits: On the body.
        refuse: Makes the answer, an application of ASGI too, to a request that is refused.
    """

    def __init__(self, app: Any, limits: Limits, refuse: Callable[[Refused], Any]) -> None:
        self._app = app
        self._limits = limits
        self._refuse = refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seconds = self._limits.body_seconds
        try:
            body = await asyncio.wait_for(self._read(scope, receive), seconds)
        except asyncio.TimeoutError:
            error = TooSlow(
                "the request did not come", where="body", allowed=f"{seconds:g} seconds", try_="a smaller request"
            )
            await self._refuse(error)(scope, receive, send)
        except TooLarge as error:
            await self._refuse(error)(scope, receive, send)
        else:
            if body is not None:
                await self._app(scope, _replayed(body, receive), send)

    async def _read(self, scope: Any, receive: Any) -> bytes | None:
        """Return the body; None where the client went away."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit():
            self._check(int(length))
        found = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            found += message.get("body", b"")
            self._check(len(found))
            if not message.get("more_body", False):
                return bytes(found)

    def _check(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise TooLarge(
                "the request is too large",
                where="body",
                got=f"{size:,} bytes or more",
                allowed=f"at most {self._limits.body_bytes:,}",
                try_="several requests, which share batches all the same",
            )


def _replayed(body: bytes, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    given = False

    async def replayed() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
