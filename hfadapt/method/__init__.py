"""What the author of a method writes: a config, the places it wants, and the deltas that sit there."""

from .combination import Combination, Combined, weighted_sum
from .config import MethodConfig
from .delta import Delta, FusionPart, Weights, tensors_of
from .method import Capabilities, CompositionMethod, Method, MethodPreset, Place, expand, select_layers
from .site import Site, Tap

__all__ = [
    "Capabilities",
    "Combination",
    "Combined",
    "CompositionMethod",
    "Delta",
    "FusionPart",
    "Method",
    "MethodConfig",
    "MethodPreset",
    "Place",
    "Site",
    "Tap",
    "Weights",
    "expand",
    "select_layers",
    "tensors_of",
    "weighted_sum",
]
