"""VAT: virtual adversarial training, which needs no labels (Miyato et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hfadapt.training.regularizers import Cost, Deltas, Regularizer, Step, divergence, masked, units

__all__ = ["VAT"]


@dataclass(frozen=True)
class VAT(Regularizer):
    """``L + weight KL(clean || x + r)``, r of length ``epsilon`` along the direction in which the KL grows fastest.

    The direction is found by power iteration from a random one: the gradient of the KL at a probe of length ``xi``.
    Directions are measured with the l2 norm over each example; the clean answers have no gradient.

    Args:
        epsilon: Length of r.
        xi: Length of the probe. The released 1e-6 is below what float32 tells apart in a difference of probabilities.
        power_iterations: How often the direction is refined.
    """

    epsilon: float = 8.0
    xi: float = 1e-3
    power_iterations: int = 1

    name: ClassVar[str] = "vat"
    paper: ClassVar[str] = "Miyato et al. 2018"
    summary: ClassVar[str] = "divergence along the direction in which it grows fastest"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("epsilon", "xi")
        self.require_count("power_iterations")

    @property
    def radius(self) -> float:
        """xi: a probe that vanishes gives no direction."""
        return self.xi

    def loss(self, step: Step) -> Tensor:
        """The task's loss and the divergence."""
        clean = tuple(one.detach() for one in step.reference)
        at: Any = _Probe(step, self.xi)
        direction: Deltas = ()
        for _ in range(self.power_iterations):
            found, gradients = step.search(at, lambda one: divergence(clean, one.answers, symmetric=False))
            direction = masked(units(gradients, "l2", "example"), found.masks)
            at = tuple(self.xi * one for one in direction)
        adversarial = step.perturb(tuple(self.epsilon * one for one in direction)).answers
        term = divergence(clean, adversarial, symmetric=False)
        return step.clean.loss + step.term_scale * self.weight * term

    def cost(self) -> Cost:
        """The clean pass, the searches and the pass at their end."""
        return Cost(2 + self.power_iterations, self.power_iterations, 2)


class _Probe:
    """A random direction of a given length for each example."""

    def __init__(self, step: Step, length: float) -> None:
        self.length = length
        self.drawn = step.drawn("normal", 1.0)

    def __call__(self, call: int, embedded: Tensor, input_ids: Tensor | None) -> Tensor:
        (unit,) = units((self.drawn(call, embedded, input_ids),), "l2", "example")
        return self.length * unit
