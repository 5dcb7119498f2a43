"""Print the oldest releases that pyproject.toml allows, as requirements that pip installs: ``transformers==5.6``.

Usage: python tools/oldest.py [NAME...]

torch is left out unless it is named: the environment keeps the one it was made with.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def oldest() -> dict[str, str]:
    """Name of each dependency, and the oldest version that is allowed."""
    block = re.search(r"^dependencies = \[\n(.*?)^\]", _PROJECT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None
    return dict(re.findall(r'"([a-z]+)>=([\d.]+)', block[1]))


def main(names: list[str]) -> None:
    """Print them, one a line."""
    found = oldest()
    for name in names or [name for name in found if name != "torch"]:
        print(f"{name}=={found[name]}")


if __name__ == "__main__":
    main(sys.argv[1:])
