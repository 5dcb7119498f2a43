"""What the author of a method writes: a config, the places it wants, and the deltas that sit there."""

from .config import MethodConfig
from .delta import Delta, Weights
from .method import Capabilities, Method, MethodPreset, Place, expand, select_layers

__all__ = [
    "Capabilities",
    "Delta",
    "Method",
    "MethodConfig",
    "MethodPreset",
    "Place",
    "Weights",
    "expand",
    "select_layers",
]
