"""What a command found out of the installed packages alone, kept on disk until one of them changes.

Loading torch, transformers and every plugin takes seconds, for an answer that is the same each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

__all__ = ["remembered"]

_OURS = ("hfadapt", "hfadapt_kernels", "hfadapt_plugins")
_STAND_ON = ("torch", "transformers")
# With these set, loading the plugins is what the user wants to see.
_LOAD_ANYWAY = ("HFADAPT_STRICT_PLUGINS", "HFADAPT_TRACE_PLUGINS")


def remembered(name: str, make: Callable[[], tuple[Any, bool]]) -> Any:
    """Return what ``make`` returned when packages and plugins were as they are now; call it where nothing is kept.

    Args:
        name: Of the file in ``~/.cache/hfadapt``.
        make: Returns something that JSON can hold, and whether to keep it.
    """
    path = _folder() / f"{name}.json"
    loader = sys.modules.get("hfadapt.plugins")
    by_hand = loader is not None and bool(loader._ADDED)
    if by_hand or any(os.environ.get(variable) for variable in _LOAD_ANYWAY):
        return make()[0]
    state = _fingerprint()
    # a file that is missing, damaged or of another state only costs time
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text("utf-8"))
        if kept["state"] == state:
            return kept["value"]
    value, keep = make()
    if keep:
        # a home that cannot be written to only costs time as well
        with contextlib.suppress(OSError):
            _write(path, {"state": state, "value": value})
    return value


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfadapt"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _fingerprint() -> str:
    """Changes with every file of hfadapt's and of each plugin, and with what is installed and selected."""
    digest = hashlib.sha256()
    plugins = sorted(entry_points(group="hfadapt"), key=lambda entry: entry.name)
    facts = [(entry.name, entry.value, entry.dist.version if entry.dist else "") for entry in plugins]
    variables = [os.environ.get(variable) for variable in ("HFADAPT_PLUGINS", "HFADAPT_BLOCK_PLUGINS")]
    digest.update(json.dumps([facts, variables]).encode())
    for package in dict.fromkeys((*_OURS, *_STAND_ON, *(entry.value.partition(".")[0] for entry in plugins))):
        # a new release of these always changes the file that says so
        for path in _files(package.partition(":")[0], whole=package not in _STAND_ON):
            status = path.stat()
            digest.update(f"{path}|{status.st_mtime_ns}|{status.st_size}\n".encode())
    return digest.hexdigest()


def _files(package: str, whole: bool) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(place).rglob("*.py")) if whole else [Path(place) / "__init__.py"]
    if spec and not spec.submodule_search_locations and spec.origin:
        yield Path(spec.origin)
