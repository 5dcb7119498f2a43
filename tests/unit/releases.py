"""What older releases of transformers lack."""

from __future__ import annotations

import pytest
from transformers.models.t5 import modeling_t5


def skip_without_attention_functions(model_type: str) -> None:
    """Before 5.15 T5 computes attention by itself, so that prefixes refuse it, and says that it knows no SDPA."""
    if model_type == "t5" and not hasattr(modeling_t5, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip("T5 takes its attention from AttentionInterface from transformers 5.15 on")
