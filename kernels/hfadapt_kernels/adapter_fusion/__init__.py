"""AdapterFusion: per-token attention over the outputs of several adapters, without forming those outputs."""

from . import fallback as _fallback  # noqa: F401 (registers the reference backend)
from .op import adapter_fusion
from .reference import adapter_fusion_reference

__all__ = ["adapter_fusion", "adapter_fusion_reference"]
