"""A pooler of each task's own."""

from .config import Pooler
from .method import PoolerMethod

__all__ = ["Pooler", "PoolerMethod"]
