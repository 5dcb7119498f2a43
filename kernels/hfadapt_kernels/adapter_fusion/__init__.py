"""AdapterFusion: per-token attention over the outputs of several adapters, without forming those outputs."""

from .kept import KeptProducts
from .op import adapter_fusion
from .reference import adapter_fusion_reference

__all__ = ["KeptProducts", "adapter_fusion", "adapter_fusion_reference"]
