"""What `pal_attention` refuses, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import TaskBatch
from ..errors import ShapeError
from ..misfits import batch_misfit, described, input_misfit, misfit
from .weights import FAMILIES, PalWeights

__all__ = ["canonical_mask", "check_arguments"]

_NAME = "pal_attention"


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
        raise input_misfit(_NAME, "x", x, "[B, T, D]", 3)
    if batch.batch_size != x.shape[0]:
        raise batch_misfit(_NAME, "x", x.shape[0], batch.batch_size)
    dim, dtype, device = x.shape[-1], x.dtype, x.device
    for task, own in enumerate(weights):
        size = own.encoder.shape[0] if own.encoder.dim() == 2 else 0
        if size == 0 or num_heads < 1 or size % num_heads:
            heads = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
            raise ShapeError(
                _NAME,
                f"encoder[{task}]",
                expected=f"[S, {dim}], S a multiple of num_heads={num_heads}",
                got=described(own.encoder),
                hint=f"Use num_heads of {heads} for S = {size}."
                if size
                else "Give the weight [S, D] of nn.Linear(D, S).",
            )
        for family, tensor in zip(FAMILIES, own, strict=True):
            if tensor is None:
                continue
            shape = _shape_of(family, dim, size)
            if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
                cure = f"D is {dim}, the last axis of x, and S {size}, the first of encoder[{task}]."
                raise misfit(_NAME, f"{family}[{task}]", tensor, shape, x, cure)


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
            got=described(mask),
            hint=_mask_cure(mask, batch, tokens),
        )
    return mask


def _mask_cure(mask: Tensor, batch: int, tokens: int) -> str:
    if mask.shape == (batch, tokens):
        return "Use mask.bool(), True for tokens to attend to."
    if mask.dim() == 4 and mask.shape[1] > 1:
        return "Use mask[:, :1]: the heads of one PAL see the same tokens."
    if mask.dim() == 3:
        return "Use mask[:, None]."
    return f"Give the padding mask that the model was called with: True for each of {tokens} tokens to attend to."
