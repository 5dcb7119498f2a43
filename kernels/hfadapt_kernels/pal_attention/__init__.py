"""Projected attention layers (PALs) for rows of different tasks: `pal_attention`."""

from .op import pal_attention

__all__ = ["pal_attention"]
