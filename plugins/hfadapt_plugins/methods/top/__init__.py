"""Task functions on top of the model (Stickland & Murray 2019): the base runs once for all tasks."""

from .config import TopAttention, TopFFN, TopLayer, TopLinear
from .method import METHODS

__all__ = ["METHODS", "TopAttention", "TopFFN", "TopLayer", "TopLinear"]
