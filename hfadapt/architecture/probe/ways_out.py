"""What can be done with a model that could not be mapped: only what works for that one is advised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..structure import convolution_names, linear_leaves
from .stacks import layer_lists

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ways_out"]

_SHOWN = 4


def ways_out(model: nn.Module) -> str:
    """Return the advice for a model without a map: LoRA by names, a part of the model, a map made otherwise, or heads.

    Args:
        model: Any.
    """
    linears, convolutions = list(linear_leaves(model)), convolution_names(model)
    ways: list[str] = []
    if linears:
        ways.append("lora with target_modules='all-linear' or names of modules, which needs no map")
    elif convolutions:
        ways.append(f"lora with target_modules={tuple(convolutions[:_SHOWN])!r}, convolutions, which needs no map")
    inner = _inner_model(model)
    if inner:
        ways.append(f"the inner model alone: attach(model.{inner}, ...)")
    if linears:
        ways.append(
            "attach(..., arch=...) with a map by hfadapt.probe(model, inputs={...}) or by hand "
            "(docs/map-an-architecture.md)"
        )
    ways.append("heads on the frozen model: hfadapt.MultiTaskModel")
    return "; ".join(ways[:-1] if linears else ways)


def _inner_model(model: nn.Module) -> str:
    """The path of a language model of transformers inside that has layers of its own; "" for none."""
    from transformers import PreTrainedModel

    return next(
        (
            path
            for path, module in model.named_modules()
            if ("language" in path or "text" in path)
            and isinstance(module, PreTrainedModel)
            and type(module) is not type(model)
            and layer_lists(module)
        ),
        "",
    )
