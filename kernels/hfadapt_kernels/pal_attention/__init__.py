"""Projected attention layers (PALs) for rows of different tasks: `pal_attention`."""

from . import cpu, fallback, triton  # noqa: F401  register their backends
from .op import pal_attention

__all__ = ["pal_attention"]
