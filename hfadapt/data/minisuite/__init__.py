"""The minisuite: eight real text tasks made on the user's machine from data inside ordinary PyPI and npm packages."""

from .archives import PACKAGES, Archives
from .build import SEED, SUITE, build

__all__ = ["PACKAGES", "SEED", "SUITE", "Archives", "build"]
