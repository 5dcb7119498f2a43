"""MTL-LoRA: one low-rank update for many tasks, each with a mixture and a matrix of its own (Yang et al. 2024)."""

from .config import MTLLoRA
from .delta import MTLLoRADelta
from .method import MTLLoRAMethod

__all__ = ["MTLLoRA", "MTLLoRADelta", "MTLLoRAMethod"]
