"""LayerNorms of an adapter's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfadapt import Rows

__all__ = ["add_norm", "keep_without_adapter", "norm_eps", "over_tokens", "own_norm"]


def add_norm(module: nn.Module, prefix: str, width: int) -> None:
    """Give ``module`` the weight and bias of a LayerNorm: gamma 1 and beta 0.

    (The PALs code draws both from N(0, 0.02), which starts its new layers near zero.)
    """
    setattr(module, f"{prefix}_weight", nn.Parameter(torch.ones(width)))
    setattr(module, f"{prefix}_bias", nn.Parameter(torch.zeros(width)))


def norm_eps(leaf: nn.Module) -> float:
    """Return the epsilon of the base's norm ``leaf``, or torch's default where it is no norm."""
    return float(getattr(leaf, "eps", getattr(leaf, "variance_epsilon", 1e-5)))


def own_norm(tensor: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rows: Rows, eps: float) -> Tensor:
    """Apply each row's own LayerNorm to ``[B, T, D]``."""
    weight = over_tokens(rows.gather(weights, 1.0), tensor)
    return F.layer_norm(tensor, tensor.shape[-1:], eps=eps) * weight + over_tokens(rows.gather(biases, 0.0), tensor)


def over_tokens(per_row: Tensor, like: Tensor) -> Tensor:
    """View ``[B, D]`` so that it broadcasts over the positions of ``like``."""
    return per_row.view(per_row.shape[0], *(1,) * (like.dim() - 2), -1)


def keep_without_adapter(rows: Rows, changed: Tensor, value: Tensor) -> Tensor:
    """Return ``changed``, but ``value`` bit for bit in rows without an adapter."""
    if rows.batch.uniform:
        return changed
    return torch.where((rows.batch.ids >= 0).view(-1, *(1,) * (value.dim() - 1)), changed, value)
