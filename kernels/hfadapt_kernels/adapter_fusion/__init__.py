"""AdapterFusion: per-token attention over the outputs of several adapters, without forming those outputs."""

from . import cpu as _cpu  # noqa: F401 (each registers its backend)
from . import fallback as _fallback  # noqa: F401
from . import triton as _triton  # noqa: F401
from .op import adapter_fusion
from .reference import adapter_fusion_reference

__all__ = ["adapter_fusion", "adapter_fusion_reference"]
