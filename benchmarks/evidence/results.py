"""Where results are kept: a file an arm, with every seed that it was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .arms import HERE, read_arms

RESULTS = HERE / "results"


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Arm to its results, in the order of ``arms.yaml``; arms that were not run are left out."""
    files = {name: folder / f"{name}.json" for name in read_arms()}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}
