"""Products of weights alone, kept from call to call while nothing trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .rank_space import WeightProducts

__all__ = ["KeptProducts"]

_WORD = 8
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Weight(NamedTuple):
    """A weight as it was: held, so that no other can come to lie where it lies."""

    tensor: Tensor
    at: int
    version: int
    sums: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Weight:
        return cls(tensor, tensor.data_ptr(), tensor._version, _sums(tensor))

    def is_still(self, tensor: Tensor) -> bool:
        """Whether this is the same weight, and nobody has written to it."""
        same = self.tensor is tensor and self.at == tensor.data_ptr() and self.version == tensor._version
        return same and all(map(torch.equal, self.sums, _sums(tensor)))


def _sums(weight: Tensor) -> tuple[Tensor, ...]:
    """The sums of a weight's bits over each of its axes, which no single change leaves as they are.

    What is written through ``weight.data`` changes neither the address nor torch's version. Whole numbers are summed
    without rounding, and far faster than the products are formed.
    """
    bits = weight.detach() if weight.dim() else weight.detach()[None]
    words = bits.shape[-1] * bits.itemsize % _WORD == 0 == bits.storage_offset() * bits.itemsize % _WORD
    bits = bits.view(torch.int64 if words else _INTEGERS[bits.itemsize])
    return (bits.clone(),) if bits.dim() < 2 else tuple(bits.sum(axis) for axis in range(bits.dim()))


class KeptProducts:
    """What was last worked out of the weights of one fusion; worked out anew when one of them is another or changed.

    Kept are products of parameters on the CPU, where no gradient is asked for. A change is known by torch's count of
    what is written in place and, for what is written through ``.data``, by sums of the bits.
    """

    def __init__(self) -> None:
        self._last: tuple[list[_Weight], tuple[Any, ...], WeightProducts] | None = None

    def of(
        self, weights: Sequence[Tensor | None], scales: Sequence[Any], make: Callable[[], WeightProducts]
    ) -> WeightProducts | None:
        """Return the products; None where they cannot be kept.

        Args:
            weights: All that they are made of; None for what is left out.
            scales: Numbers, or tensors, by which some of them are multiplied.
            make: Works them out.
        """
        numbers = tuple(None if isinstance(one, Tensor) else one for one in scales)
        tensors = [one for one in (*weights, *scales) if isinstance(one, Tensor)]
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not all(map(_can_be_known, tensors)):
            self._last = None
            return None
        last = self._last  # another thread may put a newer one there
        if last is not None and last[1] == numbers and _are_still(last[0], tensors):
            return last[2]
        seen = [_Weight.of(one) for one in tensors]  # before they are read
        made = make()
        self._last = (seen, numbers, made)
        return made


def _are_still(seen: list[_Weight], tensors: list[Tensor]) -> bool:
    return len(seen) == len(tensors) and all(map(_Weight.is_still, seen, tensors))


def _can_be_known(tensor: Tensor) -> bool:
    """Whether a change would be seen; a tensor that is made anew in every call is no use to keep anything of."""
    plain = isinstance(tensor, nn.Parameter) and tensor.device.type == "cpu" and not tensor.is_inference()
    return plain and tensor.is_contiguous() and tensor.is_floating_point() and tensor.itemsize in _INTEGERS
