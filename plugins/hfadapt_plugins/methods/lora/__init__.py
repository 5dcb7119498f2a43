"""LoRA: a low-rank update of any linear (Hu et al. 2021)."""

from .config import LoRA
from .delta import LoRADelta
from .method import LoRAMethod

__all__ = ["LoRA", "LoRADelta", "LoRAMethod"]
