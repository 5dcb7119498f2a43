"""Projected attention layers (PALs) for rows of different tasks: `pal_attention`."""

from . import fallback  # noqa: F401  registers the reference backend
from .op import pal_attention

__all__ = ["pal_attention"]
