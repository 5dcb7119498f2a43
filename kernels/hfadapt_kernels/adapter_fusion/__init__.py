"""AdapterFusion: per-token attention over the outputs of several adapters, without forming those outputs."""

from .op import adapter_fusion
from .reference import adapter_fusion_reference

__all__ = ["adapter_fusion", "adapter_fusion_reference"]
