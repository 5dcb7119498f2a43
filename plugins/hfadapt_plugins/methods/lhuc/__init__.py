"""Learning hidden unit contributions (Swietojanski & Renals 2014)."""

from .config import LHUC
from .method import LHUCMethod

__all__ = ["LHUC", "LHUCMethod"]
