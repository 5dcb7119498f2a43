"""Layers for ``kernels.kernelize``: their ``forward`` takes the place of that of a module with the same members.

The rules of ``kernels`` hold here: a layer has no constructor and no members of its own, so that all it knows stands on
the module whose ``forward`` it replaces, and is said in the layer's docstring. docs/kernel-hub.md shows both in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .batch import TaskBatch
from .errors import UnsupportedError
from .frozen_linear import PackedLinear, frozen_linear
from .parallel_adapter_norm import parallel_adapter_norm

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["AdapterNorm", "FrozenLinear", "FrozenLinearInt8"]

# Not on the module: what is saved or copied of it knows nothing of its panels.
_packed_weights: WeakKeyDictionary[nn.Module, PackedLinear] = WeakKeyDictionary()


class AdapterNorm(nn.Module):
    """``norm(x + residual + scale * up(activation(down(x))))``: a bottleneck adapter, the residual sum and the norm.

    The module has ``down`` and ``up`` (`nn.Linear`), ``activation`` (a name of `hfadapt_kernels.ACTIVATIONS`), ``norm``
    (`nn.LayerNorm` or `nn.RMSNorm` over the last axis) and, where it is not 1, ``scale`` (a number, or a tensor [1] or
    [D]). Its ``forward(x, residual)`` drops nothing out. All parameters get their gradients.
    """

    can_torch_compile = True

    down: nn.Linear
    up: nn.Linear
    norm: nn.LayerNorm | nn.RMSNorm
    activation: str

    def forward(self, x: Float[Tensor, "B *T D"], residual: Float[Tensor, "B *T D"]) -> Float[Tensor, "B *T D"]:
        """Return [B, ..., D] in the dtype of x.

        Raises:
            UnsupportedError: ``norm`` is another module, or ``activation`` no known name.
            ShapeError: A shape, dtype or device does not fit.
        """
        kind, eps, norm_bias = _norm(self.norm, x)
        scale = getattr(self, "scale", 1.0)
        return parallel_adapter_norm(
            x, x, [self.down.weight], [self.up.weight], TaskBatch.single(x.shape[0]),
            down_bias=None if self.down.bias is None else [self.down.bias],
            up_bias=None if self.up.bias is None else [self.up.bias],
            activation=self.activation, scale=[scale] if isinstance(scale, Tensor) else scale, residual=residual,
            norm=kind, norm_weight=self.norm.weight, norm_bias=norm_bias, eps=eps,
        )  # fmt: skip


class FrozenLinear(nn.Module):
    """``x W^T + bias`` of a module with the members of `nn.Linear`, its weight frozen and packed at the first call.

    Numbers are those of the weight's own dtype. The panels live as long as the module and are made anew when the
    weight changes. x and the bias get their gradients.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, input: Float[Tensor, "*B Din"]) -> Float[Tensor, "*B O"]:
        """Return [..., O] in the dtype of x.

        Raises:
            UnsupportedError: The weight wants a gradient, which it does not get.
            ShapeError: The last axis is not Din.
        """
        return frozen_linear(input, _packed(self, "float32"), self.bias)


class FrozenLinearInt8(nn.Module):
    """The same with the weight rounded to int8, one scale a row: a quarter of the memory traffic, other numbers."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, input: Float[Tensor, "*B Din"]) -> Float[Tensor, "*B O"]:
        """Return [..., O] in the dtype of x; raises what `FrozenLinear.forward` does."""
        return frozen_linear(input, _packed(self, "int8"), self.bias)


def _norm(norm: nn.Module, x: Tensor) -> tuple[str, float, Tensor | None]:
    """The kind of norm, its eps and its bias."""
    one_axis = getattr(norm, "normalized_shape", None) == (x.shape[-1],)
    if isinstance(norm, nn.LayerNorm) and one_axis:
        return "layer", norm.eps, norm.bias
    if isinstance(norm, nn.RMSNorm) and one_axis:
        return "rms", torch.finfo(x.dtype).eps if norm.eps is None else norm.eps, None
    raise UnsupportedError(
        "AdapterNorm",
        "norm",
        expected=f"nn.LayerNorm or nn.RMSNorm over the last axis of {x.shape[-1]}",
        got=repr(norm),
        hint="Leave this module out of kernelize: use_kernel_forward_from_hub takes a condition.",
    )


def _packed(module: FrozenLinear | FrozenLinearInt8, dtype: str) -> PackedLinear:
    """The packed weight of a module, made where it is missing or another weight has come."""
    weight = module.weight
    if weight.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError(
            "FrozenLinear",
            "weight",
            expected="a frozen weight, for it gets no gradient",
            got="requires_grad=True",
            hint="Freeze it (module.weight.requires_grad_(False)), or compute under torch.no_grad().",
        )
    found = _packed_weights.get(module)
    if found is None or found.weight is not weight or found.dtype != dtype:
        found = _packed_weights[module] = PackedLinear(weight, dtype)
    return found
