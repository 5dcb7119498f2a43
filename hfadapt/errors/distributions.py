"""What is installed, told by the names of folders: ``importlib.metadata`` takes longer to import than ``hfadapt``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

__all__ = ["may_have_entry_points", "release_of"]

_FORMS = (".dist-info", ".egg-info")


def release_of(package: str) -> str | None:
    """Return the release of a package that is installed as a folder on ``sys.path``, or None."""
    for folder in _distributions():
        name, _, release = os.path.basename(folder).rpartition(".")[0].partition("-")
        if name.lower() == package and release:
            return release.partition("-")[0]
    return None


def may_have_entry_points(group: str) -> bool:
    """Say whether a distribution has entry points of a group. A path whose distributions have no folder may have."""
    if any(os.path.isfile(place) for place in sys.path):
        return True
    if any(hasattr(finder, "find_distributions") and not _is_pythons_own(finder) for finder in sys.meta_path):
        return True
    wanted = f"[{group}]".encode()
    for folder in _distributions():
        try:
            with open(os.path.join(folder, "entry_points.txt"), "rb") as file:
                if wanted in file.read():
                    return True
        except OSError:
            pass
    return False


def _is_pythons_own(finder: object) -> bool:
    return getattr(finder, "__module__", "").startswith(("_frozen_importlib", "importlib"))


def _distributions() -> Iterator[str]:
    for place in sys.path:
        try:
            names = os.listdir(place or os.curdir)
        except OSError:
            continue
        for name in names:
            if name.endswith(_FORMS):
                yield os.path.join(place, name)
