"""Pieces that several rivals share: oneDNN products, and compiled eager code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["compiled", "gradients", "inference", "onednn_linear", "torch_dynamic_linear"]


def onednn_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """``x W^T + bias`` with W reordered once by oneDNN, inference only: what the best library product costs."""
    with torch.no_grad():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 2048)

    def apply(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return apply


def torch_dynamic_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """torch's int8 product, inputs rounded as they come by one scale for all of them; inference only."""
    scale = weight.detach().abs().amax(1).double() / 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it will be removed some day
        zero = torch.zeros(len(scale), dtype=torch.int64)
        rounded = torch.quantize_per_channel(weight.detach(), scale, zero, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(rounded, bias)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, True)


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of eager code, static shapes."""
    return torch.compile(fn, dynamic=False)


def gradients(fn: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor) -> Callable[[], Any]:
    """One forward and backward with fresh gradients, as a training step runs them."""

    def step() -> Any:
        return torch.autograd.grad(fn(), inputs, grad)

    return step


def inference(fn: Callable[[], Any]) -> Callable[[], Any]:
    """One forward without autograd."""

    def step() -> Any:
        with torch.no_grad():
            return fn()

    return step
