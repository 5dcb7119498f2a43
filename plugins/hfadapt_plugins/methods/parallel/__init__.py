"""Parallel and scaled parallel adapters (He et al. 2022), joint and by head."""

from .config import ParallelConfig
from .delta import ByHeadDelta
from .method import ParallelMethod

__all__ = ["ByHeadDelta", "ParallelConfig", "ParallelMethod"]
