"""Invertible adapters (Pfeiffer et al. 2020, MAD-X)."""

from .config import Invertible
from .method import InvertibleMethod

__all__ = ["Invertible", "InvertibleMethod"]
