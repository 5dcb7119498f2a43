"""LoRA: a low-rank update of any linear (Hu et al. 2021)."""

from .combining import combine_loras
from .config import LinearUpdate, LoRA
from .delta import LoRADelta
from .method import LoRAMethod
from .prototype import top_right_singular_vector
from .targets import ROLES, find_targets, refuse_only_read

__all__ = [
    "ROLES",
    "LinearUpdate",
    "LoRA",
    "LoRADelta",
    "LoRAMethod",
    "combine_loras",
    "find_targets",
    "refuse_only_read",
    "top_right_singular_vector",
]
