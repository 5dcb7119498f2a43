"""The parts of an adapted model that a further adapter may touch: a walk that costs the same however many there are."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..method.delta import Delta, Weights
from .attachment import find_attachment

__all__ = ["others_shared", "others_weights", "parts_of", "tensors_in"]


def parts_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module once, without those that are one adapter's alone.

    These are the weights of adapters in deltas whose method ties none to another, and what the layers of an adapter
    share.

    Args:
        model: An adapted model, or one as it came.
    """
    left: list[nn.Module] = [model]
    seen = {id(module) for module in others_shared(model)}
    while left:
        module = left.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        apart = module.adapters if isinstance(module, Delta) and not module.ties_adapters else None
        if apart is not None:
            yield apart
        left += [child for child in module._modules.values() if child is not None and child is not apart]


def tensors_in(model: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of these parts, each once."""
    seen = set[int]()
    for module in parts_of(model):
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def others_weights(model: nn.Module) -> Iterator[Weights]:
    """Yield the weights that `parts_of` leaves out."""
    for module in parts_of(model):
        if isinstance(module, Delta) and not module.ties_adapters:
            for weights in module.adapters.values():
                assert isinstance(weights, Weights)
                yield weights


def others_shared(model: nn.Module) -> Iterator[nn.Module]:
    """Yield what the layers of each adapter share: a table by method, and the modules in it."""
    state = find_attachment(model)
    table = model._modules.get("hfadapt_shared")
    if state is None or table is None:
        return
    for name, shared in table._modules.items():
        if shared is not None and name in state.adapters:
            yield shared
            yield from shared.children()
