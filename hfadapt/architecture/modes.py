"""A forward pass in evaluation mode, after which every module has its own mode back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["evaluating"]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode; every submodule gets its own mode back.

    The flags are set one by one and ``eval()`` is not called: with ``use_kernels=True`` that would put kernels for
    inference in the place of those for training, and ``train()``, which puts the others back, would not follow.
    """
    modes = [(one, one.training) for one in module.modules()]
    try:
        for one, _ in modes:
            one.training = False
        yield
    finally:
        for one, mode in modes:
            one.training = mode
