"""What runs in the place of a module's ``forward``: kernels that others put there, and callables of hfadapt's.

``use_kernels=True`` gives every module with a kernel another instance ``forward``, bound to it, and does so anew at
each ``train()`` and ``eval()``; a module whose kernel does not load gets its class's own, bound likewise.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from ..architecture.replaced import is_class_own
from .fused_norm import FusedNorm
from .own_forward import RoutedForward
from .slot import slot_of
from .updated_forward import UpdatedForward

__all__ = ["follow", "runs_the_same"]


def runs_the_same(module: nn.Module, before: Any) -> bool:
    """Say whether ``module`` runs what it ran when ``before`` was its instance ``forward`` (None: its class's)."""
    return _effect(module, module.__dict__.get("forward")) == _effect(module, before)


def follow(module: nn.Module, before: Any) -> None:
    """Keep a callable of hfadapt's at work whose place a kernel took.

    A norm of which adapters have copies goes on choosing among them, and the kernel serves the rows without; a delta
    that finished with the norm runs before the kernel. What wraps the callable, and calls it, is left as it is.

    Args:
        module: Whose instance ``forward`` was replaced.
        before: The callable that stood there.
    """
    found = module.__dict__.get("forward")
    if not isinstance(found, MethodType) or found.__self__ is not module:
        return
    if isinstance(before, RoutedForward):
        before.stock = found
        module.__dict__["forward"] = before
    elif isinstance(before, FusedNorm):
        slot_of(module).fuses_norm = False
    elif isinstance(before, UpdatedForward) and is_class_own(module, found):
        before.stock = found
        module.__dict__["forward"] = before


def _effect(module: nn.Module, forward: Any) -> Any:
    """An instance ``forward``, or None where it is the class's own."""
    return None if is_class_own(module, forward) else forward
