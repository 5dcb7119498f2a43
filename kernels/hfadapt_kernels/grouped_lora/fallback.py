"""What runs without a compiler: the formula in PyTorch, whose gradient is torch's own, recomputed from the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import opaque
from ..calls import takes
from .reference import grouped_lora_reference, lora_linear_reference
from .schema import Backward, Forward, Gradients, LinearBackward, LinearForward, empty_gradients, empty_low

__all__ = ["backward", "forward", "linear_backward", "linear_forward"]


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, Tensor]:
    """See the schema. The backward recomputes everything, so what is saved is not read."""
    return grouped_lora_reference(*call[:-1]).contiguous(), empty_low(call.x, call.a, call.save).zero_()


@takes(LinearForward)
def linear_forward(call: LinearForward) -> tuple[Tensor, Tensor]:
    """See the schema."""
    return lora_linear_reference(*call[:-1]).contiguous(), empty_low(call.x, call.a, call.save).zero_()


@takes(Backward)
def backward(call: Backward) -> Gradients:
    """See the schema."""
    return _recompute(call, None)


@takes(LinearBackward)
def linear_backward(call: LinearBackward) -> Gradients:
    """See the schema."""
    return _recompute(call.update(), call.weight)


def _recompute(call: Backward, weight: Tensor | None) -> Gradients:
    results = empty_gradients(call.x, call.a, call.b, call.learned, call.needs)
    need_x, need_a, need_b, need_learned = call.needs
    with opaque.autograd_inside():
        x = call.x.detach().requires_grad_(need_x)
        a = [t.detach().requires_grad_(need_a) for t in call.a]
        b = [t.detach().requires_grad_(need_b) for t in call.b]
        learned = [t.detach().requires_grad_(need_learned) for t in call.learned]
        options = (a, b, learned, call.scale, call.ids, call.dropout, call.seed)
        out = (
            grouped_lora_reference(x, None, *options)
            if weight is None
            else lora_linear_reference(x, weight, None, *options)
        )
        leaves = [x, *a, *b, *learned]
        inputs = [t for t in leaves if t.requires_grad]
        found = iter(torch.autograd.grad(out, inputs, call.grad, allow_unused=True) if out.requires_grad else ())
    for target, leaf in zip((results[0], *results[1], *results[2], *results[3]), leaves, strict=True):
        if leaf.requires_grad:
            gradient = next(found, None)
            target.zero_() if gradient is None else target.copy_(gradient)
    return results
