"""Attention over a learned prefix and the real keys, with the task of each row (prefix tuning, MAM)."""

from . import fallback as _fallback  # noqa: F401 (registers the reference backend)
from .op import prefix_attention
from .reference import prefix_attention_reference

__all__ = ["prefix_attention", "prefix_attention_reference"]
