"""Tasks whose folders were changed under the engine that serves them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .refusals import Changed

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["FolderWatch"]

logger = logging.getLogger(__name__)


class FolderWatch:
    """Looks at the folders of an engine's tasks again and again.

    Whether what is served or what is on disk should be answered with, nobody can say but who changed it: until then the
    task is refused by name, and the others are served.

    Args:
        engine: That serves them.
        seconds: Between two looks; 0 for none.
    """

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds
        self._stop = threading.Event()
        # One look at a time: what an older one found must not come after what a newer one says.
        self._looking = threading.Lock()
        self.changed: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self._run, name="hfadapt-watch", daemon=True)
        if seconds:
            self._thread.start()

    def look(self) -> None:
        """Look now."""
        if not self._seconds:
            return
        with self._looking:
            found = frozenset(self._engine.changed())
            new = sorted(found - self.changed)
            if new:
                logger.warning("folders changed under the engine: %s are refused", ", ".join(new))
            self.changed = found

    def check(self, tasks: Iterable[str]) -> None:
        """Raise where the folder of one of these tasks was changed.

        Raises:
            Changed: it was.
        """
        for name in tasks:
            if name in self.changed:
                raise Changed(
                    "the task's folder no longer holds what is served",
                    where=f"task {name!r}",
                    got="weights or configs that were changed since they were read",
                    allowed="a folder that stays as it is while it is served",
                    try_=f"PUT /tasks/{name} to serve what is there now, or put back what was there",
                )

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._seconds:
            self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.look()
            except OSError:  # a folder that is just being written; the next look will tell
                logger.warning("the folders of the tasks could not be read", exc_info=True)
