"""How much a server takes on."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ...errors import ConfigError
from ...errors.limits import require_number

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """How much a server takes on; what is beyond is refused with an error that names the limit.

    Args:
        wait_ms: How long the first request of a batch waits for others, where the engine is idle.
        batch_texts: Texts at which a batch waits no longer. A request is never split.
        queue_texts: Texts that wait for the engine, beyond which clients are told to come back later.
        request_texts: Texts of a request, each counted once for every task that it goes to.
        body_bytes: Of a request.
        body_seconds: How long a client may take to send one.
        shutdown_seconds: How long requests that are under way may still take once the server is told to stop.
        watch_seconds: How often the folders of the tasks are looked at; 0 for never.

    Raises:
        ConfigError: a number is out of range, or a request could never be taken.
    """

    wait_ms: float = 4.0
    batch_texts: int = 64
    queue_texts: int = 1024
    request_texts: int = 256
    body_bytes: int = 4 << 20
    body_seconds: float = 10.0
    shutdown_seconds: float = 30.0
    watch_seconds: float = 10.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value, may_be_0 = getattr(self, one.name), one.name in ("wait_ms", "watch_seconds")
            if isinstance(one.default, int):
                require_number(one.name, value, where="Limits", whole=True, least=1)
            elif may_be_0:
                require_number(one.name, value, where="Limits", least=0, most=86400)
            else:
                require_number(one.name, value, where="Limits", above=0, most=86400)
        if self.request_texts > self.queue_texts:
            raise ConfigError(
                "the queue has no room for the largest request",
                where="Limits",
                got=f"request_texts={self.request_texts}, queue_texts={self.queue_texts}",
                allowed="request_texts <= queue_texts",
                try_=f"queue_texts={4 * self.request_texts}",
            )
