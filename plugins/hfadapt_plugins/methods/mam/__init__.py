"""MAM: prefix tuning in attention and a scaled parallel adapter beside the FFN (He et al. 2022)."""

from .preset import MAM_PRESET, mam

__all__ = ["MAM_PRESET", "mam"]
