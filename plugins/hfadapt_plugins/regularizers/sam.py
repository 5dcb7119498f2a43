"""SAM: sharpness-aware minimization (Foret et al., ICLR 2021)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hfadapt.errors import ConfigError
from hfadapt.training.regularizers import Cost, Regularizer, Step, Update

__all__ = ["SAM"]


@dataclass(frozen=True)
class SAM(Regularizer):
    """Trains with the gradient at ``w + rho g / |g|``, where g is the gradient at w.

    Both gradients are sums over all accumulated micro-batches, with the same dropout masks; clipping and the optimizer
    see the second one.

    Args:
        rho: How far up.
        adaptive: ASAM (Kwon et al. 2021): the step is measured in units of each weight, ``rho w^2 g / |w g|``.
        weight: Share of the second gradient; the rest is the gradient at w.
    """

    rho: float = 0.05
    adaptive: bool = False

    name: ClassVar[str] = "sam"
    paper: ClassVar[str] = "Foret et al. 2021"
    summary: ClassVar[str] = "the gradient at the worst point near the weights"
    perturbs_words: ClassVar[bool] = False
    weight_is_share: ClassVar[bool] = True
    repeats_updates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("rho")
        if not isinstance(self.adaptive, bool):
            self.fail("adaptive", self.adaptive, "true or false")

    def check_run(self, updates: int, optimizer: Any) -> None:
        """Refuse optimizers that take gradients during the backward pass, or call the loss themselves."""
        inner = getattr(optimizer, "optimizer", optimizer)
        closure = inspect.signature(inner.step).parameters.get("closure")
        layerwise = "Dummy" in type(inner).__name__ or any(w in type(inner).__name__.lower() for w in ("lomo",))
        if layerwise or closure is None or closure.default is closure.empty:
            raise ConfigError(
                "SAM needs both gradients before the optimizer takes one",
                where=f"sam with {type(inner).__name__}",
                got="an optimizer that updates during the backward pass"
                if layerwise
                else f"step{inspect.signature(inner.step)}",
                allowed="optimizers of torch's contract, step(closure=None), that update in step()",
                try_="optim='adamw_torch'",
            )

    def loss(self, step: Step) -> Tensor:
        """The task's own."""
        return step.clean.loss

    @torch.no_grad()
    def update(self, update: Update) -> None:
        """Climb, take the gradient there, and come back."""
        size = self._size(update)
        if not (size.isfinite() and size > 0):
            return  # nowhere to climb; what is not finite is left for the Trainer to see
        first = [(p, g.clone(), p.detach().clone()) for p, g in update.gradients]
        for parameter, gradient, _ in first:
            step = gradient * parameter.square() if self.adaptive else gradient
            parameter.add_(step * (self.rho / size).to(step.dtype))
        try:
            with torch.enable_grad():
                update.again()
        finally:
            # copied and not subtracted: the weights come back bit for bit
            for parameter, _, before in first:
                parameter.copy_(before)
        if self.weight < 1:
            for parameter, gradient, _ in first:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.weight).add_(gradient, alpha=1 - self.weight)

    def _size(self, update: Update) -> Tensor:
        if not self.adaptive:
            return update.norm()
        sizes = [(p.detach() * g).float().norm() for p, g in update.gradients]
        return torch.linalg.vector_norm(torch.stack(sizes)) if sizes else torch.zeros(())

    def cost(self) -> Cost:
        """Two passes forward and backward."""
        return Cost(2, 0, 2)
