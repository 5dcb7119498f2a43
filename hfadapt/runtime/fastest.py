"""How long the products of a model's frozen linears take on this machine, and which of them is the fastest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from hfadapt_kernels import PackedLinear, frozen_linear
from hfadapt_kernels.frozen_linear.int8_dynamic import DYNAMIC, MOST_INPUTS
from hfadapt_kernels.native import isa

__all__ = ["fastest", "slowdown"]

#: The exact product first: another one is chosen where it takes less than this share of its time.
_DTYPES = ("float32", "bfloat16", "int8", DYNAMIC)
_ENOUGH = 0.9
_WITH_BFLOAT16 = ("avx512bf16", "amx")
_ROWS = 256
#: Multiplications of one product; rows are left out of larger ones, so that a measurement takes a moment.
_MOST = 2**29


def fastest(weights: Iterable[Tensor]) -> tuple[str, str]:
    """Return what to multiply with, and why: the measured time of one pass through the linears with each.

    ``float32`` stays where nothing else takes less than 0.9 of its time, since all else is less exact.

    Args:
        weights: ``[O, Din]`` each; one of each shape is measured.
    """
    weights = list(weights)
    fits = all(weight.shape[1] <= MOST_INPUTS for weight in weights)
    taken = {dtype: _seconds(weights, dtype) for dtype in _DTYPES if fits or dtype != DYNAMIC}
    best = min(taken, key=lambda dtype: taken[dtype])
    chosen = best if taken[best] < _ENOUGH * taken["float32"] else "float32"
    return chosen, ", ".join(f"{dtype} {1e3 * one:.1f} ms" for dtype, one in taken.items())


def slowdown(weights: Iterable[Tensor]) -> float:
    """Return how many times longer than in float32 the products take in bfloat16; 1.0 where the processor has them.

    Args:
        weights: ``[O, Din]`` each, in any dtype; one of each shape is measured.
    """
    weights = list(weights)
    if isa() in _WITH_BFLOAT16 or not all(weight.device.type == "cpu" for weight in weights):
        return 1.0
    exact = _seconds([weight.float() for weight in _one_a_shape(weights)], "float32")
    return _seconds([weight.bfloat16() for weight in _one_a_shape(weights)], "bfloat16") / exact


def _one_a_shape(weights: Iterable[Tensor]) -> list[Tensor]:
    return list({tuple(weight.shape): weight for weight in weights}.values())


def _seconds(weights: list[Tensor], dtype: str) -> float:
    """Return the time of one product with each weight, those of a shape counted alike."""
    counts = Counter(tuple(weight.shape) for weight in weights)
    return sum(counts[tuple(weight.shape)] * _time(weight, dtype) for weight in _one_a_shape(weights))


@torch.inference_mode()
def _time(weight: Tensor, dtype: str) -> float:
    rows = max(1, min(_ROWS, _MOST // max(1, weight.numel())))
    x = torch.ones(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    packed = PackedLinear.pack(weight.detach(), dtype)

    def once() -> float:
        start = time.perf_counter()
        frozen_linear(x, packed, None)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    once()  # panels are made at the first call
    return min(once() for _ in range(3))
