"""Coupling blocks: functions that are inverted exactly, whatever their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfadapt_kernels import get_activation

from ..shared import init_projection
from .config import Invertible

__all__ = ["AdditiveCoupling", "AffineCoupling", "coupling"]

_CLAMP = 5.0


class _Function(nn.Module):
    """``W_2 act(W_1 x + b_1) + b_2``."""

    def __init__(self, config: Invertible, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = max(1, int(inputs // config.reduction_factor))
        self.inner, self.outer = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.activation = config.non_linearity
        for one in (self.inner, self.outer):
            init_projection(one.weight.data)
            nn.init.zeros_(one.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(get_activation(self.activation).fn(self.inner(x)))


class AdditiveCoupling(nn.Module):
    """``y1 = x1 + F(x2)``, ``y2 = x2 + G(y1)`` on the two halves of x (NICE, Dinh et al. 2015)."""

    def __init__(self, config: Invertible, width: int) -> None:
        super().__init__()
        self.middle = width // 2
        self.F = _Function(config, width - self.middle, self.middle)
        self.G = _Function(config, self.middle, width - self.middle)

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        """Return ``[B, T, D]``."""
        x1, x2 = x[..., : self.middle], x[..., self.middle :]
        if inverse:
            y2 = x2 - self.G(x1)
            return torch.cat([x1 - self.F(y2), y2], -1)
        y1 = x1 + self.F(x2)
        return torch.cat([y1, x2 + self.G(y1)], -1)


class AffineCoupling(nn.Module):
    """``y1 = e(s) x1 + t`` with s and t from x2, then y2 from y1 alike (GLOW, Kingma & Dhariwal 2018)."""

    def __init__(self, config: Invertible, width: int) -> None:
        super().__init__()
        self.middle = width // 2
        self.s1 = _Function(config, self.middle, 2 * (width - self.middle))
        self.s2 = _Function(config, width - self.middle, 2 * self.middle)

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        """Return ``[B, T, D]``."""
        x1, x2 = x[..., : self.middle], x[..., self.middle :]
        if inverse:
            scale, shift = self._parts(self.s1(x1))
            y2 = (x2 - shift) / scale
            scale, shift = self._parts(self.s2(y2))
            return torch.cat([(x1 - shift) / scale, y2], -1)
        scale, shift = self._parts(self.s2(x2))
        y1 = scale * x1 + shift
        scale, shift = self._parts(self.s1(y1))
        return torch.cat([y1, scale * x2 + shift], -1)

    @staticmethod
    def _parts(both: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = both.chunk(2, -1)
        # A soft clamp of the logarithm keeps the scale and its inverse finite.
        return torch.exp(_CLAMP * 0.636 * torch.atan(scale / _CLAMP)), shift


def coupling(config: Invertible, width: int) -> nn.Module:
    """Return the block that ``config`` names."""
    return (AdditiveCoupling if config.block == "nice" else AffineCoupling)(config, width)
