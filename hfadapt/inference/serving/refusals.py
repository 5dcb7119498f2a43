"""The requests that a server refuses, each kind with its status of HTTP."""

from __future__ import annotations

from typing import Any

from ...errors import CheckpointError, HFAdaptError, TaskError

__all__ = [
    "BadRequest",
    "BadToken",
    "Changed",
    "Closing",
    "NotAllowed",
    "NotFound",
    "Refused",
    "TooBusy",
    "TooLarge",
    "TooSlow",
    "as_json",
    "headers_of",
    "status_of",
]


class Refused(HFAdaptError):
    """A request that is not answered."""

    status = 400


class BadRequest(Refused):
    """It is not what the server reads."""

    status = 422


class BadToken(Refused):
    """Who asks does not know the token."""

    status = 401


class NotAllowed(Refused):
    """Nobody may ask for it here."""

    status = 403


class NotFound(Refused):
    """Nothing is there."""

    status = 404


class TooSlow(Refused):
    """The client takes too long to send it."""

    status = 408


class Changed(Refused):
    """The folder of its task no longer holds what is served."""

    status = 409


class TooLarge(Refused):
    """It is larger than the server reads."""

    status = 413


class TooBusy(Refused):
    """Too many texts wait already."""

    status = 429
    #: Seconds after which there should be room.
    retry_after = 1


class Closing(Refused):
    """The server is about to stop."""

    status = 503


def status_of(error: Exception) -> int:
    """Return the status of HTTP that says what kind of error it is: whose fault, and whether to come back."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, TaskError):
        return 409
    return 422 if isinstance(error, HFAdaptError) else 500


def headers_of(error: Exception) -> dict[str, str]:
    """Return the headers that go with an error's status."""
    if isinstance(error, TooBusy):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, Closing):
        return {"Retry-After": "1"}
    if isinstance(error, BadToken):
        return {"WWW-Authenticate": "Bearer"}
    # What is left of the body is not read.
    return {"Connection": "close"} if isinstance(error, (TooLarge, TooSlow)) else {}


def as_json(error: Exception) -> dict[str, Any]:
    """Return an error with its five parts. Of one that nobody expected only the kind is told: the log has the rest."""
    if not isinstance(error, HFAdaptError):
        what, try_ = "the server failed on this request", "its log says where; other requests are answered"
        got, allowed = type(error).__name__, "requests as the page /docs describes them"
        error = HFAdaptError(what, where="the server", got=got, allowed=allowed, try_=try_)
        kind = "ServerError"
    else:
        kind = type(error).__name__
    parts = {"what": error.what, "where": error.where, "got": error.got, "allowed": error.allowed, "try": error.try_}
    said = {name: "" if value is None else str(value) for name, value in parts.items()}
    if isinstance(error, CheckpointError) and not said["try"]:
        said["try"] = "save the adapter again, from a model on the base that is served"
    return {"error": {"kind": kind, **said}}
