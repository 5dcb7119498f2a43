"""Where searches for the worst perturbation start."""

from __future__ import annotations

import torch
from torch import Tensor

from hfadapt.training.regularizers import Perturbation, Step

__all__ = ["UniformStart", "uniform_start", "zero_start"]


class UniformStart:
    """Uniform noise of length ``magnitude`` at most for each example: bounded by ``magnitude / sqrt(tokens * D)``.

    Args:
        step: The batch.
        magnitude: In the l2 norm.
    """

    def __init__(self, step: Step, magnitude: float) -> None:
        self.step = step
        self.magnitude = magnitude
        self.drawn = step.drawn("uniform", 1.0)

    def __call__(self, call: int, embedded: Tensor, input_ids: Tensor | None) -> Tensor:
        drawn = self.drawn(call, embedded, input_ids)
        mask = self.step.mask_of(embedded, input_ids)
        rows, width = embedded.shape[0], embedded.shape[-1]
        if mask is None:
            tokens = drawn.new_full((rows,), embedded.shape[1])
        else:
            tokens = mask.sum(-1).to(drawn.dtype).clamp_min(1)
        return drawn * (self.magnitude / (tokens * width).sqrt()).view(-1, 1, 1)


def uniform_start(step: Step, magnitude: float) -> Perturbation:
    """Return FreeLB's start; the clean point itself for a magnitude of 0."""
    return UniformStart(step, magnitude) if magnitude else zero_start


def zero_start(call: int, embedded: Tensor, input_ids: Tensor | None) -> Tensor:
    """The clean point, in float32 at least."""
    dtype = embedded.dtype if embedded.dtype == torch.float64 else torch.float32
    return torch.zeros_like(embedded, dtype=dtype)
