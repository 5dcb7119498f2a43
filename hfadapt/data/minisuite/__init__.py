"""The minisuite: eight real text tasks made on the user's machine from data inside ordinary PyPI and npm packages."""

from hfadapt.data.minisuite.archives import PACKAGES, Archives
from hfadapt.data.minisuite.build import SEED, SUITE, build

__all__ = ["PACKAGES", "SEED", "SUITE", "Archives", "build"]
