"""The micro-batches of one optimizer step, for regularizers that go over them again (SAM, FreeAT)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .step import Step

__all__ = ["MicroBatch", "Update"]


class MicroBatch(NamedTuple):
    """One call of Trainer's ``training_step``.

    Args:
        run: Makes the call again.
        step: What the regularizer saw.
    """

    run: Callable[[], Any]
    step: Step


class Update:
    """One optimizer step, whose gradients have been summed over its micro-batches and over ranks.

    Args:
        module: The model without wrappers.
        batches: Of the step, in order.
        alone: Context in which ranks do not wait for each other; for all micro-batches but the last.
        apply: Clips the gradients, makes the optimizer's step and takes the gradients away.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: list[MicroBatch],
        alone: Callable[[], Any],
        apply: Callable[[], None],
    ) -> None:
        self.module = module
        self.batches = batches
        self.apply = apply
        self._alone = alone

    @property
    def gradients(self) -> list[tuple[nn.Parameter, Tensor]]:
        """What trains and has a gradient."""
        return list(self._gradients())

    def _gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for parameter in self.module.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                yield parameter, parameter.grad

    def norm(self) -> Tensor:
        """Return the l2 norm of all gradients together, float32."""
        gradients = [gradient for _, gradient in self._gradients()]
        if not gradients:
            return torch.zeros(())
        sizes = torch.stack([one.float() for one in torch._foreach_norm(gradients)])
        return torch.linalg.vector_norm(sizes)

    def again(self) -> None:
        """Take the gradients away and sum them anew, at the parameters as they are now."""
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                parameter.grad = None
        for batch in self.batches[:-1]:
            with self._alone():
                batch.run()
        self.batches[-1].run()
