"""Methods that are compositions of others."""

from .mam import mam
from .unipelt import unipelt

__all__ = ["mam", "unipelt"]
