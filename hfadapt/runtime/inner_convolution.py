"""Deltas of a convolution whose class has a forward of its own, which pads, keeps or turns round what it reads.

A hook of the module sees what its forward is given and returns, which is not what the convolution reads and makes. So
the module gets an instance ``_conv_forward``, the function that torch's convolutions keep apart from their forward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import AttachError
from ..routing.context import current
from .slot import run_slot

__all__ = ["InnerConvolution", "change_convolution", "leave_convolution"]


class InnerConvolution:
    """The ``_conv_forward`` of a convolution with deltas; picklable, and follows copies of the model.

    Args:
        leaf: The module.
        path: Its path in the model.
    """

    def __init__(self, leaf: nn.Module, path: str) -> None:
        self.leaf = leaf
        self.path = path

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        leaf: Any = self.leaf
        value = type(leaf)._conv_forward(leaf, input, weight, bias)
        routing = current()
        if routing is None:
            return value
        if weight is not leaf.weight:
            raise AttachError(
                "a convolution with a LoRA computes with another weight than its own, so that the update is none of it",
                where=self.path,
                got=f"a weight that {type(leaf).__name__}.forward made",
                allowed="a forward that convolves with self.weight",
                try_="target_modules without this module; or modules_to_save with it",
            )
        return run_slot(leaf, "convolution", value, input, routing)


def change_convolution(leaf: nn.Module, path: str) -> None:
    """Let the deltas of a convolution run where it convolves."""
    leaf.__dict__.setdefault("_conv_forward", InnerConvolution(leaf, path))


def leave_convolution(leaf: nn.Module) -> None:
    """Give ``leaf`` its class's ``_conv_forward`` back."""
    if isinstance(leaf.__dict__.get("_conv_forward"), InnerConvolution):
        del leaf.__dict__["_conv_forward"]
