"""Errors of the ops. Each message names the op, the argument, what was expected and what was got."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "DoubleBackwardError",
    "KernelError",
    "RowIdError",
    "ShapeError",
    "SharedMemoryError",
    "UnsupportedError",
]


class KernelError(ValueError):
    """Base of every error that an op raises about its arguments or its backend.

    Args:
        op: Name of the op, or of the class, that complains.
        what: One clause naming the argument and what is wrong with it.
        expected: What would have been right.
        got: What was passed.
        hint: What to do about it.
    """

    def __init__(self, op: str, what: str, *, expected: str = "", got: str = "", hint: str = "") -> None:
        text = f"{op}: {what}"
        if expected:
            text += f": expected {expected}"
        if got:
            text += f", got {got}"
        if hint:
            text += f". {hint}"
        super().__init__(text)
        self.op = op


class ShapeError(KernelError):
    """A tensor has the wrong number of axes, the wrong size or the wrong dtype or device."""


class RowIdError(KernelError):
    """A task id of the batch is outside of the lists given to an op."""


class UnsupportedError(KernelError):
    """The combination of arguments is not one that any implementation computes."""


class BackendError(KernelError):
    """A backend that was asked for by name cannot run; the message holds every reason."""


class SharedMemoryError(KernelError):
    """A Triton kernel wants more of a card's shared memory than one block may have there."""


class DoubleBackwardError(KernelError, RuntimeError):
    """The gradient of a gradient was asked from a fused backward that has none."""

    def __init__(self, op: str) -> None:
        super().__init__(
            op,
            "the fused backward cannot be differentiated again",
            hint="Use hfadapt_kernels.use_backend('reference'), which supports gradients of gradients.",
        )
