"""Arrow: the deltas of a linear weighed for each token by what the linear reads (Ostapenko et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method.delta import Delta
from ..routing.routing import Routing, Rows
from ..routing.steps import Arrow
from .delta_call import apply_rows, source_of

__all__ = ["run_arrow"]


def run_arrow(
    step: Arrow,
    index: int,
    deltas: Sequence[Delta],
    value: Tensor,
    leaf_input: Tensor | None,
    leaf: nn.Module,
    routing: Routing,
) -> Tensor:
    """Add to the output of a linear the effects of its deltas, weighed token by token.

    Every adapter computes every token, and those that a token did not choose have a weight of 0 there: which ones they
    are need not be known outside of the device.

    Args:
        step: With the adapters, and how they are weighed.
        index: Of the step among the routing's.
        deltas: Of the linear. Those of adapters of other settings are other deltas at the same place, and those of
            slices of the linear are at other places.
        value: The output, ``[B, T, O]`` or ``[B * T, O]``.
        leaf_input: What the linear read.
        leaf: The linear.
        routing: Of the forward pass.
    """
    batch = routing.together(index, value.device)
    inside = routing.members(index, value.device, value.shape[0])
    for group in _places(deltas):
        here = [(name, delta) for name in step.names for delta in group if name in delta.names]
        if not here:
            continue
        source = source_of(here[0][1], value, leaf_input, routing)
        weights = step.weigh(_scores(source, [delta.prototype(name) for name, delta in here])).to(value.dtype)
        effects = torch.zeros_like(value)
        for number, (name, delta) in enumerate(here):
            changed = apply_rows(delta, value, source, Rows((name,), batch, routing, leaf, index))
            effects = effects + weights[..., number, None] * (changed - value)
        # Chosen and not multiplied by zero: rows outside keep their bits.
        whole = value + effects
        value = whole if inside is None else torch.where(inside.view(-1, *(1,) * (value.dim() - 1)), whole, value)
    return value


def _places(deltas: Sequence[Delta]) -> list[list[Delta]]:
    """Group deltas by what they change: several slots of a map may be slices of one linear."""
    found: dict[object, list[Delta]] = {}
    for delta in deltas:
        found.setdefault((delta.site.slot, delta.site.part, delta.site.layer), []).append(delta)
    return list(found.values())


def _scores(source: Tensor, prototypes: Sequence[Tensor]) -> Tensor:
    """Return ``|v . x|`` of each token and prototype, ``[..., N]``, in at least float32."""
    # A choice has no gradient; weights by it would only pull inputs towards prototypes that nothing trains.
    dtype = torch.promote_types(source.dtype, torch.float32)
    with torch.autocast(source.device.type, enabled=False):
        return F.linear(source.detach().to(dtype), torch.stack([one.to(dtype) for one in prototypes])).abs()
