"""The one table of activations: name, torch function, derivative, and the code that C++ and Triton switch on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UnsupportedError
from .misfits import nearest

__all__ = ["ACTIVATIONS", "Activation", "get_activation"]

_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)


@dataclass(frozen=True)
class Activation:
    """An element-wise function with its derivative.

    Attributes:
        name: Public name.
        code: Integer that C++ (``csrc/base/math.h``) and Triton kernels switch on; never renumbered.
        fn: The function.
        derivative: Its derivative with respect to the input, evaluated at the input.
    """

    name: str
    code: int
    fn: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


def _gelu_derivative(x: Tensor) -> Tensor:
    normal = torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + x * normal


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_tanh_derivative(x: Tensor) -> Tensor:
    t = torch.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _SQRT_2_OVER_PI * (1.0 + 3 * 0.044715 * x * x)


def _silu_derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


_ROWS = (
    Activation("identity", 0, lambda x: x, torch.ones_like),
    Activation("relu", 1, F.relu, lambda x: (x > 0).to(x.dtype)),
    Activation("gelu", 2, F.gelu, _gelu_derivative),
    Activation("gelu_tanh", 3, _gelu_tanh, _gelu_tanh_derivative),
    Activation("silu", 4, F.silu, _silu_derivative),
    Activation("tanh", 5, torch.tanh, lambda x: 1.0 - torch.tanh(x) ** 2),
)
_ALIASES = {
    "linear": "identity",
    "none": "identity",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}
_BY_NAME = ACTIVATIONS | {alias: ACTIVATIONS[name] for alias, name in _ALIASES.items()}
_BY_CODE = {row.code: row for row in _ROWS}


def get_activation(name: str | int | None, op: str = "activation") -> Activation:
    """The activation called ``name`` (``None`` is the identity; an integer is a code).

    Raises:
        UnsupportedError: The name is unknown; the message lists the known ones.
    """
    found = _BY_NAME.get("identity" if name is None else name) if not isinstance(name, int) else _BY_CODE.get(name)
    if found is None:
        raise UnsupportedError(
            op,
            "activation is unknown",
            expected=f"one of {sorted(_BY_NAME)}",
            got=repr(name),
            hint=nearest(name, _BY_NAME, "Use None for no activation."),
        )
    return found
