"""Bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021) with AdapterHub's options."""

from .config import Bottleneck, LayerNorms
from .method import BottleneckMethod
from .presets import PRESETS

__all__ = ["PRESETS", "Bottleneck", "BottleneckMethod", "LayerNorms"]
