"""The server of an engine, from its first request to a clean end; needs the extra ``serve``."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import uvicorn

from ...errors import ConfigError
from ...errors.limits import require_number
from .admin import Admin
from .app import make_app
from .limits import Limits

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["listen", "make_server"]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket on which clients are heard.

    Args:
        host: Of this machine: ``127.0.0.1`` for itself alone.
        port: 0 for a free one.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is none of this machine.
    """
    # The resolver takes larger ports for what is left of them.
    require_number("port", port, where="hfadapt serve", whole=True, least=0, most=65535)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            "cannot listen",
            where="hfadapt serve",
            got=f"{host}, port {port}: {error}",
            allowed="an address of this machine and a port that nobody listens on",
            try_="--port 0, for a free one",
        ) from error


def make_server(engine: Engine, limits: Limits | None = None, admin: Admin | None = None) -> uvicorn.Server:
    """Return a server; ``run(sockets=[listen(...)])`` serves until SIGTERM or SIGINT, or until it ``should_exit``.

    It then hears nobody new, answers the requests that are under way, and stops.

    Args:
        engine: As of `make_app`.
        limits: As of `make_app`.
        admin: As of `make_app`.
    """
    chosen = limits or Limits()
    config = uvicorn.Config(
        make_app(engine, chosen, admin),
        access_log=False,
        log_level="warning",
        # whole seconds is what it takes
        timeout_graceful_shutdown=max(1, round(chosen.shutdown_seconds)),
    )
    return uvicorn.Server(config)
