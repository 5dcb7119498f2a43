"""The reference as a backend of the opaque op: the gradient is torch's own, recomputed from the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import opaque
from .reference import pal_attention_reference
from .schema import OP, Results, empty_gradients, empty_results
from .weights import unflatten


def _forward(x: Tensor, weights: list[Tensor], present: list[bool], *rest: Any) -> Results:
    *options, save = rest
    _, _, num_heads, _, activation = options[:5]
    results = empty_results(x, weights, present, num_heads, activation, save)
    results[0].copy_(pal_attention_reference(x, unflatten(weights, present), *options))
    # The backward below recomputes everything, so what is saved is not read.
    for saved in results[1:]:
        saved.zero_()
    return results


def _backward(grad: Tensor, x: Tensor, weights: list[Tensor], present: list[bool], *rest: Any) -> Any:
    options, needs = rest[:7], rest[-1]
    results = empty_gradients(x, weights, needs)
    with opaque.autograd_inside():
        leaves = [t.detach().requires_grad_(need) for t, need in zip([x, *weights], needs, strict=True)]
        out = pal_attention_reference(leaves[0], unflatten(leaves[1:], present), *options)
        inputs = [t for t in leaves if t.requires_grad]
        found = iter(torch.autograd.grad(out, inputs, grad, allow_unused=True) if out.requires_grad else ())
    for target, leaf in zip([results[0], *results[1]], leaves, strict=True):
        if leaf.requires_grad:
            gradient = next(found, None)
            target.zero_() if gradient is None else target.copy_(gradient)
    return results


OP.register("reference", _forward, _backward)
