"""A method described by the four design choices of He et al. 2022, and by nothing else."""

from .config import Design
from .method import DesignMethod

__all__ = ["Design", "DesignMethod"]
