"""YOPO: ascent steps through the first layer alone ("you only propagate once", Zhang et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hfadapt.training.regularizers import Cost, Step, ascended, first_block, first_outputs, masked

from .pgd import PGD
from .starts import uniform_start

__all__ = ["YOPO"]


@dataclass(frozen=True)
class YOPO(PGD):
    """YOPO-m-n: ``steps`` full passes, and after each but the last ``inner_steps`` ascent steps through one layer.

    A full pass gives the gradient ``p`` of the loss with respect to the first layer's output; with ``p`` held fast, the
    ascent needs ``<p, f_0(x + delta)>`` only. The gradients of the full passes are averaged. The split is behind the
    first transformer layer, where FreeLB's authors put it.

    Args:
        steps: m, full passes.
        inner_steps: n, ascent steps after each.
        step_size: alpha.
        epsilon: Radius of the l2 ball round each example.
        init_magnitude: Length of a uniform start; 0 starts at the clean point.
        weight: Share of this loss; the rest is the loss at the clean point.
    """

    inner_steps: int = 3

    name: ClassVar[str] = "yopo"
    paper: ClassVar[str] = "Zhang et al. 2019"
    summary: ClassVar[str] = "ascent steps through the first layer alone"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("inner_steps")

    def check_model(self, module: nn.Module) -> None:
        """Find the first layer before training."""
        first_block(module)

    def loss(self, step: Step) -> Tensor:
        """The last full pass's share of the loss, after the others were back-propagated."""
        block = first_block(step.module)
        at: Any = uniform_start(step, self.init_magnitude)
        before = None
        for _ in range(self.steps - 1):
            with first_outputs(block, step.leaves) as kept:
                found = step.train(at, last=False)
            part = self.weight / self.steps * found.loss
            step.backward(part)
            before = part.detach() if before is None else before + part.detach()
            at = found.deltas
            costates = tuple(torch.zeros_like(one) if one.grad is None else one.grad for one in kept)
            for _ in range(self.inner_steps):
                gradients = step.search_below(block, at, costates)
                moved = ascended(
                    at, gradients, step_size=self.step_size, radius=self.epsilon, norm="l2", scope="example"
                )
                at = masked(moved, found.masks)
        last = self.weight / self.steps * step.train(at).loss
        if self.weight < 1:
            last = last + (1 - self.weight) * step.clean.loss
        return last if before is None else last + before

    def cost(self) -> Cost:
        """m passes forward and backward; what the first layer costs alone is left out."""
        passes = self.steps + (self.weight < 1)
        return Cost(passes, 0, passes)
