"""A disk without room: which file had none, how much was to be written, and how much is free."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import HFAdaptError

__all__ = ["FullDiskError", "is_full", "writing"]

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# safetensors, which writes by itself, says it in words
_WORDS = tuple(f"(os error {number})" for number in _NUMBERS)
# and torch says only that it could not write: why, the disk tells
_OF_TORCH = ("PytorchStreamWriter failed writing", "iostream error")
_LITTLE = 1 << 20


class FullDiskError(HFAdaptError, OSError):
    """A file cannot be written, because the disk, or what its owner may have of it, is full."""

    errno = errno.ENOSPC


def is_full(error: BaseException | None) -> bool:
    """Say whether an error, or one that led to it, is of a disk without room."""
    return any(
        (isinstance(one, OSError) and one.errno in _NUMBERS) or any(words in str(one) for words in _WORDS)
        for one in _led_to(error)
    )


def _led_to(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def writing(path: str | os.PathLike[str], size: int | None = None, again: str = "the same again") -> Iterator[None]:
    """Let a write that finds no room say how much it needed.

    Args:
        path: Of the file, or of the folder where it is not known which.
        size: Bytes that are to be written, where that is known.
        again: What to do once there is room.

    Raises:
        FullDiskError: in place of an error of a disk without room; others pass.
    """
    try:
        yield
    except HFAdaptError:
        raise
    except Exception as error:
        free = _free(Path(path))
        of_torch = any(words in str(one) for one in _led_to(error) for words in _OF_TORCH)
        if not is_full(error) and not (free < _LITTLE and of_torch):
            raise
        raise _told(path, size, free, again) from error


def _free(path: Path) -> float:
    """Bytes that are free where a file is, or is to be; infinitely many where nobody can say."""
    with suppress(OSError):
        return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free
    return math.inf


def _told(path: str | os.PathLike[str], size: int | None, free: float, again: str) -> FullDiskError:
    wanted = "" if size is None else f"{size:,} bytes were to be written, "
    return FullDiskError(
        "the disk is full",
        where=str(path),
        got=f"{os.strerror(errno.ENOSPC)}: {wanted}{free:,} are free",
        allowed="a disk with room, and a quota that is not used up",
        try_=f"make room, and {again}",
    )
