"""FreeAT: an update after every ascent step ("adversarial training for free", Shafahi et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hfadapt.training.regularizers import Cost, Step, Update

from .pgd import PGD
from .starts import uniform_start

__all__ = ["FreeAT"]


@dataclass(frozen=True)
class FreeAT(PGD):
    """Trains each batch ``steps`` times in turn, with an optimizer step each time.

    One backward pass gives the gradients of the parameters and the ascent step of the next replay. The paper divides
    the epochs by ``steps``, so that a run makes as many updates as before: do so in the Trainer's arguments. The
    learning rate moves on once a batch, and accumulated micro-batches are replayed together.

    Args:
        steps: K, how often each batch is trained.
        step_size: alpha.
        epsilon: Radius of the l2 ball round each example.
        init_magnitude: Length of a uniform start; 0 starts at the clean point.
        weight: Share of this loss; the rest is the loss at the clean point.
    """

    name: ClassVar[str] = "freeat"
    paper: ClassVar[str] = "Shafahi et al. 2019"
    summary: ClassVar[str] = "every ascent step also updates the parameters"
    repeats_updates: ClassVar[bool] = True

    def loss(self, step: Step) -> Tensor:
        """The task's loss at the perturbation that the last replay left."""
        at: Any = step.memory.get("at")
        found = step.train(uniform_start(step, self.init_magnitude) if at is None else at)
        step.memory["found"] = found
        return self.mixed_with_clean(step, found.loss)

    def update(self, update: Update) -> None:
        """Update the parameters and train the batches anew, a step further up; Trainer makes the last update."""
        for _ in range(self.steps - 1):
            for batch in update.batches:
                found = batch.step.memory["found"]
                batch.step.memory["at"] = self.moved(found, found.gradients())
            update.apply()
            update.again()

    def cost(self) -> Cost:
        """K passes forward and backward."""
        passes = self.steps * (1 + (self.weight < 1))
        return Cost(passes, 0, passes)
