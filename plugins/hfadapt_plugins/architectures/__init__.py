"""Where the layers of the known model families keep their parts: data, one function from config to map a family.

Each function names paths relative to the family's base model; :func:`hfadapt.architecture.resolve` finds that base
model inside whatever head model it was given. The tests hold every map against the automatic probe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfadapt import hookimpl
from hfadapt_plugins.architectures import decoders, encoders, seq2seq, vision

if TYPE_CHECKING:
    from hfadapt.plugins import Registry

__all__ = ["register_architectures"]


@hookimpl
def register_architectures(registry: Registry) -> None:
    """Register the shipped families under transformers' model types."""
    for family in (encoders, decoders, seq2seq, vision):
        for model_type, describe in family.ARCHITECTURES.items():
            registry.add(model_type, describe)
