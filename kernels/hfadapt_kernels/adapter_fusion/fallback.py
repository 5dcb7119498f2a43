"""What runs without a compiler: the core in PyTorch, whose gradient is torch's own, recomputed from the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import opaque
from ..calls import takes
from .rank_space import CoreInputs, fusion_core_reference
from .schema import Backward, Gradients, empty_gradients, empty_results

__all__ = ["backward", "forward"]


@takes(CoreInputs)
def forward(core: CoreInputs) -> tuple[Tensor, Tensor]:
    """See the schema."""
    results = empty_results(core.products, len(core.hidden))
    for result, got in zip(results, fusion_core_reference(core), strict=True):
        result.copy_(got)
    return results


@takes(Backward)
def backward(call: Backward) -> Gradients:
    """See the schema."""
    core, need_hidden = call.core, call.need_hidden
    results = empty_gradients(core.products, core.hidden, core.shift, need_hidden)
    with opaque.autograd_inside():
        core = core._replace(
            products=core.products.detach().requires_grad_(),
            hidden=[z.detach().requires_grad_(need_hidden) for z in core.hidden],
            shift=None if core.shift is None else core.shift.detach().requires_grad_(),
        )
        outputs = fusion_core_reference(core)
        pairs = [(o, g) for o, g in zip(outputs, (call.grad_weighted, call.grad_weights), strict=True) if g is not None]
        inputs = [t for t in (core.products, *core.hidden, core.shift) if t is not None and t.requires_grad]
        found = torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs])
    targets = [results[0], *(results[1] if need_hidden else ()), *(() if core.shift is None else (results[2],))]
    for target, gradient in zip(targets, found, strict=True):
        target.copy_(gradient)
    return results
