"""Attention over a learned prefix and the real keys, with the task of each row (prefix tuning, MAM)."""

from .op import prefix_attention
from .reference import prefix_attention_reference

__all__ = ["prefix_attention", "prefix_attention_reference"]
