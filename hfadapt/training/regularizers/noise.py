"""Random draws of regularizers, which leave torch's own random state alone.

A draw depends on the run's seed, the update, the row's number in the global batch and how many draws came before in the
step. So a resumed run draws what an uninterrupted one does, two processes draw what one with their joint batch does
(on CPU), and a row's noise does not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["Law", "Noise", "seed_of"]

Law = Literal["normal", "uniform"]
#: Numbers are drawn in blocks of torch's normal kernel, so that a longer row starts with the numbers of a shorter one.
_BLOCK = 16


def seed_of(*numbers: int) -> int:
    """Return one seed for whole numbers that say where in a run a draw is."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Noise:
    """The draws of one micro-batch.

    Args:
        place: Where in the run it is: seed and update.
        rows: Number of each of its rows in the global batch.
    """

    def __init__(self, place: tuple[int, ...], rows: Sequence[int]) -> None:
        self.place = place
        self.rows = rows
        self.count = 0

    def seed(self) -> int:
        """Return a seed of its own for another generator."""
        call, self.count = self.count, self.count + 1
        return seed_of(*self.place, self.rows[0], call)

    def draw(self, law: Law, size: float, like: Tensor) -> Tensor:
        """Return noise shaped like [B, T, D]: normal with deviation ``size``, or uniform in ``(-size, size)``."""
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        if like.device.type != "cpu":
            # one draw for all rows: a generator a row would be a launch a row
            generator = torch.Generator(like.device)
            generator.manual_seed(self.seed())
            return _filled(torch.empty(like.shape, dtype=dtype, device=like.device), law, size, generator)
        call, self.count = self.count, self.count + 1
        # multiple choice puts the choices of a row among the rows
        each = max(1, like.shape[0] // len(self.rows))
        numbers = math.prod(like.shape[1:])
        drawn = torch.empty(like.shape[0], -(-numbers // _BLOCK) * _BLOCK, dtype=dtype)
        generator = torch.Generator()
        for row, values in enumerate(drawn):
            number = self.rows[row // each] * each + row % each
            generator.manual_seed(seed_of(*self.place, number, call))
            _filled(values, law, size, generator)
        return drawn[:, :numbers].reshape(like.shape)


def _filled(values: Tensor, law: Law, size: float, generator: torch.Generator) -> Tensor:
    if law == "normal":
        return values.normal_(0.0, size, generator=generator)
    return values.uniform_(-size, size, generator=generator)
