"""AdapterFusion: attention over the outputs of several adapters (Pfeiffer et al. 2021)."""

from .adding import add_fusion
from .config import FusionConfig
from .layer import FusionLayer
from .method import FusionMethod
from .recording import FusionRecord, prune_fusion, record_fusion
from .regularizer import fusion_regularizer

__all__ = [
    "FusionConfig",
    "FusionLayer",
    "FusionMethod",
    "FusionRecord",
    "add_fusion",
    "fusion_regularizer",
    "prune_fusion",
    "record_fusion",
]
