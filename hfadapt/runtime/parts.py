"""The parts of an adapted model that a further adapter may touch: a walk that costs the same however many there are."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..method.delta import Delta, Weights

__all__ = ["others_weights", "parts_of", "tensors_in"]


def parts_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module once, without the weights of adapters in deltas whose method ties none to another."""
    seen, left = set[int](), [model]
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
