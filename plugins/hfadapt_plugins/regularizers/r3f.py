"""R3F: the divergence between a batch and a noisy copy of it, without ascent (Aghajanyan et al., ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hfadapt.training.regularizers import Cost, Regularizer, Step, divergence

__all__ = ["R3F"]


@dataclass(frozen=True)
class R3F(Regularizer):
    """``L + weight (KL(P||Q) + KL(Q||P))``, Q with noise on the word embeddings; both sides have a gradient.

    The release has no term for regressions; here it is the squared difference, as in SMART.

    Args:
        noise: ``normal`` with deviation ``sigma``, or ``uniform`` in ``(-sigma, sigma)``.
        sigma: Size of the noise.
    """

    noise: Literal["normal", "uniform"] = "uniform"
    sigma: float = 1e-5

    name: ClassVar[str] = "r3f"
    paper: ClassVar[str] = "Aghajanyan et al. 2021"
    summary: ClassVar[str] = "divergence from a noisy copy, without ascent"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one_of("noise", ("normal", "uniform"))
        self.require_positive("sigma")

    @property
    def radius(self) -> float:
        """The size of the noise."""
        return self.sigma

    def loss(self, step: Step) -> Tensor:
        """The task's loss and the divergence."""
        clean = step.clean.loss
        noisy = step.perturb(step.drawn(self.noise, self.sigma)).answers
        return clean + step.term_scale * self.weight * divergence(noisy, step.reference)

    def cost(self) -> Cost:
        """Two passes forward and backward."""
        return Cost(2, 0, 2)
