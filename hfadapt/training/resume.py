"""Which checkpoint a run that was cut off goes on from."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

__all__ = ["last_checkpoint"]

logger = logging.getLogger(__name__)
_FOLDER = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Return the newest whole checkpoint that a ``Trainer`` wrote into ``folder``, or ``None``.

    A run that is killed while it saves leaves a folder that lacks files. ``Trainer`` writes ``trainer_state.json``
    after all others, so a checkpoint without it, or with half of it, is passed over with a warning;
    ``resume_from_checkpoint=True`` would take it.
    """
    found = [
        (int(match[1]), path) for path in Path(folder).glob("checkpoint-*") if (match := _FOLDER.fullmatch(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        if _is_whole(path):
            return str(path)
        logger.warning("%s was not written to its end; an older checkpoint is used", path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
