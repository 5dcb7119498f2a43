"""Where results are kept: a file an arm, with every seed that it was trained with."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .arms import HERE, Arm, read_arms

RESULTS = HERE / "results"


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Arm to its results, in the order of ``arms.yaml``; arms that were not run are left out."""
    files = {name: folder / f"{name}.json" for name in read_arms()}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}


class Kept:
    """The files of a folder, each read and written whole; threads may share it.

    Args:
        folder: Of the results.
        text: The common recipe.
    """

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text = folder, text
        self._lock = threading.Lock()

    def _read(self, arm: Arm) -> dict[str, Any]:
        file = self.folder / f"{arm.name}.json"
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        key = arm.key(self.text)
        return found if found.get("recipe") == key else {"recipe": key, "seeds": {}}

    def has(self, arm: Arm, seed: int) -> bool:
        """Whether a seed was trained with the arm as it is now."""
        return str(seed) in self._read(arm)["seeds"]

    def keep(self, arm: Arm, seed: int, result: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        """Add a seed; those of another recipe go."""
        with self._lock:
            found = self._read(arm)
            seeds = {**found["seeds"], str(seed): dict(result)}
            found["seeds"] = {each: seeds[each] for each in sorted(seeds, key=int)}
            found["machine"] = dict(machine)
            self.folder.mkdir(exist_ok=True)
            file = self.folder / f"{arm.name}.json"
            writing = file.with_suffix(".writing")
            writing.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            os.replace(writing, file)
