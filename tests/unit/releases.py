"""What releases of transformers differ in."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from packaging.version import Version
from transformers import GPT2Model
from transformers.models.t5 import modeling_t5

# The argument and the output that hold the key-value cache; renamed in 5.24.
CACHE = "cache" if "cache" in inspect.signature(GPT2Model.forward).parameters else "past_key_values"


def older(package: str, than: str) -> bool:
    """Whether the release of ``package`` that is installed came before ``than``."""
    return Version(version(package)) < Version(than)


def checkpoint_activations(model, **options):
    """Switch activation checkpointing on; the method was renamed in 5.24."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable(options or None)


def skip_without_attention_functions(model_type: str) -> None:
    """Before 5.15 T5 computes attention by itself, so that prefixes refuse it, and says that it knows no SDPA."""
    if model_type == "t5" and not hasattr(modeling_t5, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip("T5 takes its attention from AttentionInterface from transformers 5.15 on")
