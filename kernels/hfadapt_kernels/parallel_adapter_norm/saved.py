"""What the forward of parallel_adapter_norm saves and what its backward returns: shapes shared by all backends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["empty_grads", "saved_shapes", "stat_dtype"]

# Which gradients the backward is asked for.
NEED_H, NEED_DOWN, NEED_UP, NEED_DOWN_BIAS, NEED_UP_BIAS, NEED_SCALE, NEED_NORM_WEIGHT, NEED_NORM_BIAS = (
    1 << i for i in range(8)
)


def saved_shapes(x: Tensor, down: list[Tensor], norm: int, save: bool) -> tuple[list[int], list[int], int]:
    """Shapes of z and pre and the length of mean and rstd; zero-sized when they are not saved."""
    # torch.Size.numel() would fix the sizes in an exported graph
    rows, rank = math.prod(x.shape[:-1]), max(d.shape[0] for d in down)
    z = list(x.shape) if save and norm else [0]
    return z, [rows, rank] if save else [0], rows if save and norm else 0


def stat_dtype(x: Tensor) -> torch.dtype:
    """Statistics are float32, float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def empty_grads(
    grad: Tensor,
    h: Tensor,
    down: list[Tensor],
    up: list[Tensor],
    scale: list[Tensor],
    norm: int,
    needs: int,
    empty: Callable[[Tensor, Sequence[int]], Tensor] = Tensor.new_empty,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Outputs of the backward, uninitialised; what ``needs`` does not name has no elements. ``empty`` makes them."""

    def like(tensor: Tensor, need: int) -> Tensor:
        return empty(tensor, tensor.shape) if needs & need else grad.new_empty(0)

    grads = []
    width = grad.shape[-1]
    for t, (d, u) in enumerate(zip(down, up, strict=True)):
        grads += [like(d, NEED_DOWN), like(u, NEED_UP)]
        grads.append(grad.new_empty(d.shape[0] if needs & NEED_DOWN_BIAS else 0))
        grads.append(grad.new_empty(width if needs & NEED_UP_BIAS else 0))
        grads.append(like(scale[t], NEED_SCALE) if scale else grad.new_empty(0))
    grads += [grad.new_empty(width if needs & need else 0) for need in (NEED_NORM_WEIGHT, NEED_NORM_BIAS)]
    dz = empty(grad, grad.shape) if norm else grad.new_empty(0)
    return dz, like(h, NEED_H), grads
