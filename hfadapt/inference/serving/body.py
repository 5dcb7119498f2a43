"""Bodies of requests, read whole before anything else sees them: not too large, and not too slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from .limits import Limits
from .refusals import Refused, TooLarge, TooSlow

__all__ = ["LimitedBody"]

_MOST_DISCARDED = 1 << 26


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
            await self._refuse(error)(scope, receive, self._discarding(receive, send))
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

    def _discarding(self, receive: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
        """A ``send`` that ends the answer when the rest of the body has come, and is thrown away.

        The answer is on its way before. A connection that is closed while its client still sends is reset, and clients
        that send everything before they read would never see it. It is closed all the same on one who sends for longer
        than a body may take, or more than 64 MiB.
        """

        async def discard() -> None:
            size, more = 0, True
            while more and size < _MOST_DISCARDED:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)

        async def sending(message: Any) -> None:
            if message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            await send({**message, "more_body": True})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(discard(), self._limits.body_seconds)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        return sending

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
