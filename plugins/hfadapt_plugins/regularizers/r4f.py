"""R4F: R3F with a head whose Lipschitz constant is bounded (Aghajanyan et al., ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hfadapt.training.regularizers import output_linears

from .r3f import R3F

__all__ = ["R4F"]


@dataclass(frozen=True)
class R4F(R3F):
    """R3F subject to ``Lip(g) <= 1``, g the linear that gives the answers.

    After every optimizer step its weight is divided by its spectral norm where that is above ``lipschitz``. The release
    divides in every forward pass instead; a projection reaches the same set, keeps the parameter's name, and what is
    saved needs no code to be used.

    Args:
        noise: See ``R3F``.
        sigma: See ``R3F``.
        lipschitz: The bound.
    """

    lipschitz: float = 1.0

    name: ClassVar[str] = "r4f"
    summary: ClassVar[str] = "R3F with the head's spectral norm bounded"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("lipschitz")

    def check_model(self, module: nn.Module) -> None:
        """Find the head before training."""
        output_linears(module)

    def after_update(self, module: nn.Module) -> None:
        """Project the head's weight, where it trains."""
        for linear in output_linears(module):
            if linear.weight.requires_grad:
                size = torch.linalg.matrix_norm(linear.weight.float(), 2)
                linear.weight.mul_((self.lipschitz / size).clamp(max=1.0).nan_to_num(1.0))
