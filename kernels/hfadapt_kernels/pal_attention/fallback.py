"""What runs without a compiler: the formula in PyTorch, whose gradient is torch's own, recomputed from the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import opaque
from ..calls import takes
from .reference import pal_attention_reference
from .schema import Backward, Forward, Results, empty_gradients, empty_results
from .weights import unflatten

__all__ = ["backward", "forward"]


@takes(Forward)
def forward(call: Forward) -> Results:
    """See the schema. The backward recomputes everything, so what is saved is not read."""
    results = empty_results(call)
    results[0].copy_(pal_attention_reference(call.x, unflatten(call.weights, call.present), *call[3:-1]))
    for saved in results[1:]:
        saved.zero_()
    return results


@takes(Backward)
def backward(call: Backward) -> tuple[Tensor, list[Tensor]]:
    """See the schema."""
    x, weights, needs = call.x, call.weights, call.needs
    results = empty_gradients(x, weights, needs)
    with opaque.autograd_inside():
        leaves = [t.detach().requires_grad_(need) for t, need in zip([x, *weights], needs, strict=True)]
        out = pal_attention_reference(leaves[0], unflatten(leaves[1:], call.present), *call[4:11])
        inputs = [t for t in leaves if t.requires_grad]
        found = iter(torch.autograd.grad(out, inputs, call.grad, allow_unused=True) if out.requires_grad else ())
    for target, leaf in zip([results[0], *results[1]], leaves, strict=True):
        if leaf.requires_grad:
            gradient = next(found, None)
            target.zero_() if gradient is None else target.copy_(gradient)
    return results
