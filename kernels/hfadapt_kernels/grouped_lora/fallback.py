"""The reference as a backend of the opaque ops: the gradient is torch's own, recomputed from the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import opaque
from .reference import grouped_lora_reference, lora_linear_reference
from .schema import LINEAR, OP, Gradients, empty_gradients, empty_low


def _forward(x: Tensor, y: Tensor | None, a: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    *arguments, save = rest
    # The backward below recomputes everything, so what is saved is not read.
    return grouped_lora_reference(x, y, a, *arguments).contiguous(), empty_low(x, a, save).zero_()


def _linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: list[Tensor], *rest: Any) -> Any:
    *arguments, save = rest
    return lora_linear_reference(x, weight, bias, a, *arguments).contiguous(), empty_low(x, a, save).zero_()


def _backward(grad: Tensor, x: Tensor, low: Tensor, *args: Any) -> Gradients:
    return _recompute(grad, x, None, args)


def _linear_backward(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, *args: Any) -> Gradients:
    return _recompute(grad, x, weight, args)


def _recompute(grad: Tensor, x: Tensor, weight: Tensor | None, args: tuple[Any, ...]) -> Gradients:
    a, b, learned, *options, needs = args
    results = empty_gradients(x, a, b, learned, needs)
    need_x, need_a, need_b, need_learned = needs
    with opaque.autograd_inside():
        x = x.detach().requires_grad_(need_x)
        a = [t.detach().requires_grad_(need_a) for t in a]
        b = [t.detach().requires_grad_(need_b) for t in b]
        learned = [t.detach().requires_grad_(need_learned) for t in learned]
        out = (
            grouped_lora_reference(x, None, a, b, learned, *options)
            if weight is None
            else lora_linear_reference(x, weight, None, a, b, learned, *options)
        )
        leaves = [x, *a, *b, *learned]
        inputs = [t for t in leaves if t.requires_grad]
        found = iter(torch.autograd.grad(out, inputs, grad, allow_unused=True) if out.requires_grad else ())
    for target, leaf in zip((results[0], *results[1], *results[2], *results[3]), leaves, strict=True):
        if leaf.requires_grad:
            gradient = next(found, None)
            target.zero_() if gradient is None else target.copy_(gradient)
    return results


OP.register("reference", _forward, _backward)
LINEAR.register("reference", _linear_forward, _linear_backward)
