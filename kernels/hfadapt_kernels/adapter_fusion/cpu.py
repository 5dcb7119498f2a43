"""The core of adapter_fusion through the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from .op import OP, empty_gradients, empty_results


def _supports(*, device: str, dtype: torch.dtype, adapters: int) -> str | None:
    if dtype not in (torch.float32, torch.bfloat16):
        return f"no C++ kernel for {dtype}"
    return native.lacks("adapter_fusion_backward")


def _inputs(
    products: Tensor, hidden: list[Tensor], shift: Tensor | None, seed: Tensor | None
) -> tuple[Tensor, list[Tensor], Tensor | None, int | None]:
    number = None if seed is None else int(seed.item())
    shift = None if shift is None else shift.contiguous()
    return products.contiguous(), [z.contiguous() for z in hidden], shift, number


def _forward(
    products: Tensor,
    hidden: list[Tensor],
    shift: Tensor | None,
    temperature: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    products, hidden, shift, number = _inputs(products, hidden, shift, seed)
    results = empty_results(products, len(hidden))
    torch.ops.hfadapt_cpu.adapter_fusion_forward(products, hidden, shift, temperature, dropout, number, *results)
    return results


def _backward(
    grad_weighted: Tensor,
    grad_weights: Tensor | None,
    weights: Tensor,
    products: Tensor,
    hidden: list[Tensor],
    shift: Tensor | None,
    temperature: float,
    dropout: float,
    seed: Tensor | None,
    need_hidden: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    products, hidden, shift, number = _inputs(products, hidden, shift, seed)
    grads = empty_gradients(products, hidden, shift, need_hidden)
    torch.ops.hfadapt_cpu.adapter_fusion_backward(
        grad_weighted.contiguous(),
        None if grad_weights is None else grad_weights.contiguous(),
        weights.contiguous(),
        products,
        hidden,
        shift,
        temperature,
        dropout,
        number,
        grads[0],
        grads[1] if need_hidden else [],
        None if shift is None else grads[2],
    )
    return grads


OP.register("cpu", _forward, _backward, _supports)
