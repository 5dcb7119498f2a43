"""Config of invertible adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig

from ..shared import require_activation

__all__ = ["Invertible"]


@dataclass(frozen=True)
class Invertible(MethodConfig):
    """An invertible function of the embeddings, and its inverse before a language-model head.

    Args:
        block: ``"nice"``, additive coupling, or ``"glow"``, affine coupling.
        reduction_factor: The half width divided by this is the hidden size of the coupling functions.
        non_linearity: Between their two layers.
    """

    method: ClassVar[str] = "invertible"

    block: str = "nice"
    reduction_factor: float = 2
    non_linearity: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one_of("block", ("nice", "glow"))
        if not isinstance(self.reduction_factor, (int, float)) or self.reduction_factor <= 0:
            self.fail("reduction_factor", self.reduction_factor, "a number > 0")
        require_activation(self, "non_linearity")
        if self.layers != "all":
            self.fail("layers", self.layers, "'all'", "it stands before the first layer")
