"""Write down the releases that are installed here as those on which the tests passed.

Usage: python tools/tested_releases.py

`make newest` runs it behind the tests, with the Python that ran them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hfadapt.adapters.atomic import write_whole
from hfadapt.errors.releases import FILE, installed, tested


def main() -> None:
    """Replace every version in the file by the one that is installed; without the build's own part (``+cpu``)."""
    found = {package: (installed(package) or known).partition("+")[0] for package, known in tested().items()}
    write_whole(Path(FILE), (json.dumps(found, indent=2) + "\n").encode())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
