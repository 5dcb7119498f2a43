"""The releases of other packages on which the tests last passed, and whether newer ones are installed.

``tested_releases.json`` is written by ``make newest`` when the tests have passed, and by nobody else.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache

from .distributions import release_of

__all__ = ["installed", "newer_than_tested", "say_if_transformers_is_newer", "tested"]

# no Path: its module takes long to import
FILE = os.path.join(os.path.dirname(__file__), "tested_releases.json")


@cache
def tested() -> dict[str, str]:
    """Return the release of each package on which the tests last passed."""
    with open(FILE, encoding="utf-8") as file:
        return json.load(file)


def installed(package: str) -> str | None:
    """Return the version of a package that is installed, or None."""
    # deferred: `import hfadapt` needs less of this file
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _minor(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])


def newer_than_tested() -> dict[str, tuple[str, str]]:
    """Return the packages of a newer minor release than the tests know: what is installed, and what was tested."""
    found = {}
    for package, known in tested().items():
        here = installed(package)
        if here is not None and _minor(here) > _minor(known):
            found[package] = (here, known)
    return found


def say_if_transformers_is_newer() -> None:
    """Log one line when transformers is of a newer minor release than the tests know; imports nothing of it."""
    here, known = release_of("transformers"), tested()["transformers"]
    if here is not None and _minor(here) > _minor(known):
        import logging  # here, for `import hfadapt` to stay cheap

        logging.getLogger("hfadapt").warning(
            "transformers %s is newer than %s, on which hfadapt's tests last passed; what changed between them is not "
            "known to work (see hfadapt doctor)",
            here,
            known,
        )
