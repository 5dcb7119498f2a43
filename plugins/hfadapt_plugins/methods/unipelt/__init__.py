"""UniPELT: LoRA, prefix tuning and a bottleneck adapter behind gates (Mao et al. 2022)."""

from .preset import UNIPELT_PRESET, unipelt

__all__ = ["UNIPELT_PRESET", "unipelt"]
