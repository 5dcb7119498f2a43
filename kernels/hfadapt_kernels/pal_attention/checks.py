"""What `pal_attention` refuses, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import TaskBatch
from ..errors import ShapeError
from .weights import FAMILIES, PalWeights

__all__ = ["canonical_mask", "check_arguments"]

_NAME = "pal_attention"


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _shape_of(family: str, dim: int, size: int) -> tuple[int, ...]:
    if family == "encoder":
        return (size, dim)
    if family == "decoder":
        return (dim, size)
    if family == "decoder_bias":
        return (dim,)
    return (size,) if family.endswith("_bias") else (size, size)


def check_arguments(x: Tensor, weights: Sequence[PalWeights], batch: TaskBatch, num_heads: int) -> None:
    """Raise `ShapeError` unless the arguments of `pal_attention` fit together."""
    if x.dim() != 3 or not x.is_floating_point():
        raise ShapeError(_NAME, "x", expected="a floating-point [B, T, D]", got=_describe(x))
    if batch.batch_size != x.shape[0]:
        raise ShapeError(
            _NAME,
            "batch",
            expected=f"{x.shape[0]} task ids, one a row of x",
            got=str(batch.batch_size),
            hint="Use batch.expand(repeats) where a model repeats its rows.",
        )
    dim, dtype, device = x.shape[-1], x.dtype, x.device
    for task, own in enumerate(weights):
        size = own.encoder.shape[0] if own.encoder.dim() == 2 else 0
        if size == 0 or num_heads < 1 or size % num_heads:
            raise ShapeError(
                _NAME, f"encoder[{task}]", expected=f"[S, {dim}], S a multiple of num_heads={num_heads}",
                got=_describe(own.encoder),
            )  # fmt: skip
        for family, tensor in zip(FAMILIES, own, strict=True):
            if tensor is None:
                continue
            shape = _shape_of(family, dim, size)
            if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
                wanted = f"{dtype} {list(shape)} on {device}"
                raise ShapeError(_NAME, f"{family}[{task}]", expected=wanted, got=_describe(tensor))


def canonical_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """``mask`` as [B or 1, 1, 1 or T, T], bool or additive."""
    if mask is None:
        return None
    batch, tokens = x.shape[:2]
    if mask.dim() == 2 and mask.dtype == torch.bool:
        mask = mask[:, None, None, :]
    allowed = ((1, batch), (1,), (1, tokens), (tokens,))
    fits = mask.dim() == 4 and all(got in sizes for got, sizes in zip(mask.shape, allowed, strict=True))
    if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ShapeError(
            _NAME,
            "mask",
            expected=f"bool [{batch}, {tokens}], or bool (True attends) or additive "
            f"[{batch}, 1, 1 or {tokens}, {tokens}]",
            got=_describe(mask),
        )
    return mask
