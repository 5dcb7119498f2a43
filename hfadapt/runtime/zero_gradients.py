"""A gradient of zero for parameters that a step did not use, where data-parallel ranks must agree on who has one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .shards import is_shard

__all__ = ["take_part"]


class _TakePart(torch.autograd.Function):
    """The identity of its first argument, with a gradient of zeros for all the others."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        # saved and not stored, so that autograd notices when a parameter is changed before the backward pass
        ctx.save_for_backward(*parameters)
        # no view: Trainer scales the loss in place
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        zeros = (torch.zeros_like(p) if need else None for p, need in zip(ctx.saved_tensors, needs, strict=True))
        return (gradient, *zeros)


def take_part(value: Tensor, parameters: Iterable[nn.Parameter], *, always: bool = False) -> Tensor:
    """Return ``value``, whose backward pass also gives every trainable parameter a gradient (of zero at least).

    Ops give no gradient to adapters without a row, and AdapterDrop skips whole layers; under data-parallel training
    such parameters would leave the reduction waiting.

    Args:
        value: What ``backward`` starts from, such as the loss.
        parameters: Those that must have a gradient; shards get theirs where they are gathered.
        always: Also where ``value`` has no gradient yet.
    """
    wanted = [p for p in parameters if p.requires_grad and not is_shard(p)]
    if not wanted or not torch.is_grad_enabled() or not (always or value.requires_grad):
        return value
    return _TakePart.apply(value, *wanted)
