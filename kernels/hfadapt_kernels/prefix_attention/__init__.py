"""Attention over a learned prefix and the real keys, with the task of each row (prefix tuning, MAM)."""

from . import cpu as _cpu  # noqa: F401 (each registers its backend)
from . import fallback as _fallback  # noqa: F401
from . import triton as _triton  # noqa: F401
from .op import prefix_attention
from .reference import prefix_attention_reference

__all__ = ["prefix_attention", "prefix_attention_reference"]
