"""The routing of the forward pass that runs in this thread.

It is set where the model's root runs, and read by slots, from a ``threading.local``: a ``ContextVar`` breaks
``torch.compile(fullgraph=True)``, and an attribute of the model would be shared by threads.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .routing import Routing

__all__ = ["current", "set_current", "use_routing"]

_STATE = threading.local()


def current() -> Routing | None:
    """Return the routing of the forward pass that runs in this thread, or None."""
    return getattr(_STATE, "routing", None)


def set_current(routing: Routing | None) -> None:
    """Replace the routing of this thread; callers put back what they found."""
    _STATE.routing = routing


class use_routing:
    """Context manager that sets the routing and puts back what it found, also on exceptions."""

    def __init__(self, routing: Routing | None) -> None:
        self.routing = routing

    def __enter__(self) -> Routing | None:
        self.before = current()
        set_current(self.routing)
        return self.routing

    def __exit__(self, *error: object) -> None:
        set_current(self.before)
