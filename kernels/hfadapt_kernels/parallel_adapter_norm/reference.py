"""parallel_adapter_norm in plain PyTorch: a few clear lines, differentiable by torch, any device and dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import get_activation
from ..batch import Segment
from ..dropout import keep_scale
from ..rows import row_linear, rowwise

__all__ = ["adapter_delta", "keep_factor", "normalise", "parallel_adapter_norm_reference", "per_segment"]


def adapter_delta(
    h: Tensor,
    down: Tensor,
    up: Tensor,
    down_bias: Tensor | None,
    up_bias: Tensor | None,
    scale: Tensor | float,
    activation: str | int,
    keep: Tensor | None,
) -> Tensor:
    """``s * (act(h W_d^T + b) W_u^T + b')`` of one task: [..., Dh] to [..., D]. ``keep`` is the dropout factor."""
    hidden = rowwise(get_activation(activation).fn, row_linear(h, down, down_bias))
    if keep is not None:
        hidden = hidden * keep
    return row_linear(hidden, up, up_bias) * scale


def normalise(
    z: Tensor, norm: str | None, weight: Tensor | None, bias: Tensor | None, eps: float, offset: float
) -> Tensor:
    """LayerNorm, RMSNorm or nothing over the last axis; statistics in float32 (float64 for float64)."""
    if norm is None:
        return z
    if offset == 0.0 and norm == "layer":
        return F.layer_norm(z, z.shape[-1:], weight, bias, eps)
    wide = z if z.dtype == torch.float64 else z.float()
    if norm == "layer":
        wide = F.layer_norm(wide, z.shape[-1:], None, None, eps)
    else:
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight is not None:
        wide = wide * (weight.to(wide.dtype) + offset)
    if bias is not None:
        wide = wide + bias.to(wide.dtype)
    return wide.to(z.dtype)


def parallel_adapter_norm_reference(
    x: Tensor,
    h: Tensor,
    down: Sequence[Tensor],
    up: Sequence[Tensor],
    segments: Sequence[Segment],
    *,
    down_bias: Sequence[Tensor] = (),
    up_bias: Sequence[Tensor] = (),
    activation: str | int = "relu",
    scale: Sequence[Tensor | float] = (),
    residual: Tensor | None = None,
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """``norm(x [+ residual] + s_t (up_t(drop(act(down_t(h) + b_t))) + b'_t))``, rows of x grouped in ``segments``."""
    base = x if residual is None else x + residual

    def one(segment: Segment) -> Tensor:
        t, rows = segment.task, segment.rows
        if t < 0:
            return base[rows]
        keep = keep_factor(h, rows, down[t].shape[0], dropout, seed)
        bias = down_bias[t] if down_bias else None
        out_bias = up_bias[t] if up_bias else None
        return base[rows] + adapter_delta(h[rows], down[t], up[t], bias, out_bias, scale[t], activation, keep)

    return normalise(per_segment(one, segments, base), norm, norm_weight, norm_bias, eps, norm_offset)


def per_segment(one, segments: Sequence[Segment], like: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """Compute ``one(segment)`` for each and put the rows back in the order of the batch, without scatter or add."""
    if not segments:
        return like.clone()
    pieces = [one(segment) for segment in segments]
    if len(pieces) == 1:
        return pieces[0]
    rows = [torch.arange(like.shape[0], device=like.device)[segment.rows] for segment in segments]
    order = torch.argsort(torch.cat(rows))
    return torch.cat(pieces)[order]


def keep_factor(h: Tensor, rows: slice | Tensor, rank: int, dropout: float, seed: Tensor | None) -> Tensor | None:
    """0 or ``1 / (1 - p)`` for the bottleneck of these rows, or ``None`` without dropout."""
    if seed is None or dropout == 0.0:
        return None
    # The position of a token in the flattened batch is its row in the mask, whatever its neighbours' tasks are.
    positions = torch.arange(h.shape[:-1].numel(), device=h.device).view(h.shape[:-1])[rows]
    return keep_scale(seed, positions.unsqueeze(-1), torch.arange(rank, device=h.device), dropout, h.dtype)
