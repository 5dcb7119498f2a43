"""The core of adapter_fusion through the C++ kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rank_space import CoreInputs
from .schema import OP, Gradients, empty_gradients, empty_results


def _supports(*, device: str, dtype: torch.dtype, adapters: int) -> str | None:
    if dtype not in (torch.float32, torch.bfloat16):
        return f"no C++ kernel for {dtype}"
    return None


def _read(args: tuple[Any, ...]) -> CoreInputs:
    """The inputs as the C++ op takes them: contiguous, the seed as a number."""
    core = CoreInputs(*args).contiguous()
    return core._replace(seed=None if core.seed is None else int(core.seed.item()))


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    core = _read(args)
    results = empty_results(core.products, len(core.hidden))
    torch.ops.hfadapt_cpu.adapter_fusion_forward(*core, *results)
    return results


def _backward(grad_weighted: Tensor, grad_weights: Tensor | None, weights: Tensor, *args: Any) -> Gradients:
    core, need_hidden = _read(args[:-1]), args[-1]
    grads = empty_gradients(core.products, core.hidden, core.shift, need_hidden)
    torch.ops.hfadapt_cpu.adapter_fusion_backward(
        grad_weighted.contiguous(),
        None if grad_weights is None else grad_weights.contiguous(),
        weights.contiguous(),
        *core,
        grads[0],
        grads[1] if need_hidden else [],
        None if core.shift is None else grads[2],
    )
    return grads


OP.register("cpu", _forward, _backward, _supports)
