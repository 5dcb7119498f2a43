"""The plain PyTorch core as a backend of the opaque op: its gradient is torch's own, recomputed from the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import opaque
from .op import OP, empty_gradients, empty_results
from .rank_space import fusion_core_reference


def _forward(products: Tensor, hidden: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    results = empty_results(products, len(hidden))
    for result, got in zip(results, fusion_core_reference(products, hidden, *rest), strict=True):
        result.copy_(got)
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
    results = empty_gradients(products, hidden, shift, need_hidden)
    with opaque.autograd_inside():
        leaves = [products.detach().requires_grad_(), *(z.detach().requires_grad_(need_hidden) for z in hidden)]
        moved = None if shift is None else shift.detach().requires_grad_()
        outputs = fusion_core_reference(leaves[0], leaves[1:], moved, temperature, dropout, seed)
        pairs = [(o, g) for o, g in zip(outputs, (grad_weighted, grad_weights), strict=True) if g is not None]
        inputs = [t for t in (*leaves, moved) if t is not None and t.requires_grad]
        found = torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs])
    targets = [results[0], *(results[1] if need_hidden else ()), *(() if shift is None else (results[2],))]
    for target, gradient in zip(targets, found, strict=True):
        target.copy_(gradient)
    return results


OP.register("reference", _forward, _backward)
