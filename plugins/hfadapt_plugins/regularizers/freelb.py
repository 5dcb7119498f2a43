"""FreeLB: gradients of several ascent steps, for the price of the ascent (Zhu et al., ICLR 2020, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hfadapt.errors.limits import require_number
from hfadapt.training.regularizers import Cost, Regularizer, Step, ascended, masked

from .starts import uniform_start

__all__ = ["FreeLB"]


@dataclass(frozen=True)
class FreeLB(Regularizer):
    """Trains on the mean of the task's loss over ``steps`` perturbations, each one ascent step from the last.

    Every pass gives gradients to the parameters and to the perturbation at once; there is no clean pass, and the
    dropout masks are the same in all of them. Gradients are measured with the l2 norm over each example.

    Args:
        steps: K.
        step_size: alpha, length of an ascent step.
        init_magnitude: Length of the uniform start, for an example whose numbers are all at the bound.
        max_norm: Radius of the l2 ball round each example; ``None`` for none.
        weight: Share of this loss; the rest is the loss at the clean point.
    """

    steps: int = 2
    step_size: float = 0.1
    init_magnitude: float = 0.2
    max_norm: float | None = None

    name: ClassVar[str] = "freelb"
    paper: ClassVar[str] = "Zhu et al. 2020"
    summary: ClassVar[str] = "mean gradient over the steps of an adversarial ascent"
    weight_is_share: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("steps")
        self.require_positive("step_size", "init_magnitude")
        require_number("max_norm", self.max_norm, where="FreeLB(max_norm=...)", above=0, optional=True)

    def loss(self, step: Step) -> Tensor:
        """The last perturbation's share of the loss, after the others were back-propagated."""
        at: Any = uniform_start(step, self.init_magnitude)
        before = None
        for _ in range(self.steps - 1):
            found = step.train(at, last=False)
            part = self.weight / self.steps * found.loss
            step.backward(part)
            before = part.detach() if before is None else before + part.detach()
            gradients = found.gradients()
            moved = ascended(
                found.deltas,
                gradients,
                step_size=self.step_size,
                radius=self.max_norm,
                norm="l2",
                scope="example",
            )
            at = masked(moved, found.masks)
        last = self.weight / self.steps * step.train(at).loss
        if self.weight < 1:
            last = last + (1 - self.weight) * step.clean.loss
        return last if before is None else last + before

    def cost(self) -> Cost:
        """K passes forward and backward."""
        passes = self.steps + (self.weight < 1)
        return Cost(passes, 0, passes)
