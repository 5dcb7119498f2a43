"""Which checkpoint a run that was cut off goes on from."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from ..adapters.folder_config import is_marked

__all__ = ["last_checkpoint"]

logger = logging.getLogger(__name__)
_STATE = "trainer_state.json"
# rng_state files are left out: other ranks write them when they like
_BEFORE_STATE = ("*model*.safetensors", "*model*.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")
_FOLDER = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Return the newest whole checkpoint that a ``Trainer`` wrote into ``folder``, or ``None``.

    A run that is killed while it saves leaves a folder that lacks files. ``Trainer`` writes ``trainer_state.json``
    after all others, so a checkpoint without it, or with half of it, is passed over with a warning;
    ``resume_from_checkpoint=True`` would take it. So is one whose weights or optimizer are newer than its state: a run
    that was killed while it saved over the checkpoint of an earlier one.
    """
    found = [
        (int(match[1]), path) for path in Path(folder).glob("checkpoint-*") if (match := _FOLDER.fullmatch(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        if not _is_whole(path):
            logger.warning("%s was not written to its end; an older checkpoint is used", path)
        elif newer := _newer_than_state(path):
            logger.warning(
                "%s is passed over: %s there is newer than %s, so it may be of another run. If the folder was only "
                "copied (cp -a keeps times), name it as resume_from_checkpoint.",
                path,
                newer,
                _STATE,
            )
        else:
            return str(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    state = checkpoint / _STATE
    try:
        # a named pipe would be waited for
        return state.is_file() and "global_step" in json.loads(state.read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _newer_than_state(checkpoint: Path) -> str:
    """Name a file that ``Trainer`` writes before its state and that is newer than it; "" where there is none."""
    if is_marked(checkpoint):
        # MultiTaskModel takes the older state away with the older weights, so times need not be trusted
        return ""
    written = (checkpoint / _STATE).stat().st_mtime_ns
    files = [path for pattern in _BEFORE_STATE for path in checkpoint.glob(pattern)]
    return next((path.name for path in files if path.stat().st_mtime_ns > written), "")
