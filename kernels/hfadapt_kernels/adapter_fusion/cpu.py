"""The core of adapter_fusion through the C++ kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..calls import takes
from ..namespace import cpu_ops
from .rank_space import CoreInputs
from .schema import Backward, Gradients, empty_gradients, empty_results

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype, adapters: int) -> str | None:
    """Why the C++ kernels cannot serve the call; ``None`` when they can."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"no C++ kernel for {dtype}"
    return None


def _read(core: CoreInputs) -> tuple[Any, ...]:
    """The inputs as the C++ op takes them: contiguous, the seed as a number."""
    *tensors, seed = core.contiguous()
    return (*tensors, None if seed is None else int(seed.item()))


@takes(CoreInputs)
def forward(core: CoreInputs) -> tuple[Tensor, Tensor]:
    """See the schema."""
    results = empty_results(core.products, len(core.hidden))
    cpu_ops.adapter_fusion_forward(*_read(core), *results)
    return results


@takes(Backward)
def backward(call: Backward) -> Gradients:
    """See the schema."""
    grads = empty_gradients(call.products, call.hidden, call.shift, call.need_hidden)
    cpu_ops.adapter_fusion_backward(
        call.grad_weighted.contiguous(),
        None if call.grad_weights is None else call.grad_weights.contiguous(),
        call.weights.contiguous(),
        *_read(call.core),
        grads[0],
        grads[1] if call.need_hidden else [],
        None if call.shift is None else grads[2],
    )
    return grads
