"""Projected attention layers (Stickland & Murray 2019)."""

from .config import PAL
from .method import PALMethod

__all__ = ["PAL", "PALMethod"]
