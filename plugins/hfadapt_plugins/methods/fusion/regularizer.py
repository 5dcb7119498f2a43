"""The penalty that keeps fusion's value matrices near the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .adding import fusion_layers

if TYPE_CHECKING:
    from torch import nn

    from hfadapt import Fuse

__all__ = ["fusion_regularizer"]


def fusion_regularizer(model: nn.Module, node: Fuse | None = None) -> Tensor | None:
    """``0.01 sum_layers ||V - I||_F^2`` over layers whose V trains (Pfeiffer et al. 2021).

    In training mode the model's loss holds this term already, for the layers that a pass runs; add it only to a loss
    that is computed outside of the model.

    Args:
        model: A model with fusion layers.
        node: Only the layers of this fusion.

    Returns:
        A scalar, or None where no layer is regularised.
    """
    terms = [t for layer in fusion_layers(model, node).values() if (t := layer.penalty()) is not None]
    return torch.stack(terms).sum() if terms else None
