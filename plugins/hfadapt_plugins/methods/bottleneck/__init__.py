"""Bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021) with AdapterHub's options."""

from .config import Bottleneck, LayerNorms
from .method import BottleneckMethod

__all__ = ["Bottleneck", "BottleneckMethod", "LayerNorms"]
