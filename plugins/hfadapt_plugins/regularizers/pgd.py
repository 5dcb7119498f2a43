"""PGD: adversarial training at the end of a projected ascent of the task's loss (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hfadapt.errors.limits import require_number
from hfadapt.training.regularizers import Cost, Deltas, Pass, Regularizer, Step, ascended, masked

from .starts import uniform_start

__all__ = ["PGD"]


@dataclass(frozen=True)
class PGD(Regularizer):
    """Trains on the task's loss at ``delta``, after ``steps`` times ``delta <- Proj(delta + alpha g / |g|)``.

    Ball and gradient are measured with the l2 norm over each example (FreeLB's equation 2).

    Args:
        steps: K, ascent steps.
        step_size: alpha.
        epsilon: Radius of the ball.
        init_magnitude: Length of a uniform start; 0 starts at the clean point.
        weight: Share of this loss; the rest is the loss at the clean point.
    """

    steps: int = 2
    step_size: float = 0.1
    epsilon: float = 0.2
    init_magnitude: float = 0.0

    name: ClassVar[str] = "pgd"
    paper: ClassVar[str] = "Madry et al. 2018"
    summary: ClassVar[str] = "adversarial training at the end of a projected ascent"
    weight_is_share: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("steps")
        self.require_positive("step_size", "epsilon")
        where = f"{type(self).__name__}(init_magnitude=...)"
        require_number("init_magnitude", self.init_magnitude, where=where, least=0)

    def moved(self, found: Pass, gradients: Deltas) -> Deltas:
        """Return the perturbation after one ascent step from that of a pass."""
        moved = ascended(
            found.deltas, gradients, step_size=self.step_size, radius=self.epsilon, norm="l2", scope="example"
        )
        return masked(moved, found.masks)

    def loss(self, step: Step) -> Tensor:
        """The task's loss where the search ends."""
        at: Any = uniform_start(step, self.init_magnitude)
        for _ in range(self.steps):
            found, gradients = step.search(at, _task_loss)
            at = self.moved(found, gradients)
        return self.mixed_with_clean(step, step.train(at).loss)

    def cost(self) -> Cost:
        """K searches, and the pass that is trained on."""
        passes = 1 + (self.weight < 1)
        return Cost(self.steps + passes, self.steps, passes)


def _task_loss(found: Pass) -> Tensor:
    return found.loss
