"""Task functions on top of the model (Stickland & Murray 2019): the base runs once for all tasks."""

from .config import TopAttention, TopFFN, TopLayer, TopLinear
from .method import TopAttentionMethod, TopFFNMethod, TopLayerMethod, TopLinearMethod

__all__ = [
    "TopAttention",
    "TopAttentionMethod",
    "TopFFN",
    "TopFFNMethod",
    "TopLayer",
    "TopLayerMethod",
    "TopLinear",
    "TopLinearMethod",
]
