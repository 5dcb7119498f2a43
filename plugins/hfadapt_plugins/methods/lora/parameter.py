"""LoRA of a parameter that a module reads itself, such as the stacked matrices of experts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt import Rows, Weights

from .delta import LoRADelta, quantised

__all__ = ["ParameterDelta"]


class ParameterDelta(LoRADelta):
    """``W_e + s B_e A_e`` for each of the E matrices that a parameter holds.

    Weights of an adapter: ``lora_a`` ``[E, R, Din]``, ``lora_b`` ``[E, O, R]``. The parameter is ``[E, O, Din]``, in
    modules that say ``is_transposed`` ``[E, Din, O]``, and with two axes one matrix ``[O, Din]``.
    """

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Kaiming-uniform A and zero B, each matrix as a linear of its own."""
        inputs, outputs, count = self.site.read_width, self.site.changed_width, self.site.stacked
        down, up = (count, config.r, inputs), (count, outputs, config.r)
        if config.init == "lora":
            weights.lora_a = self.parameter(
                down, lambda t: nn.init.kaiming_uniform_(t.view(-1, inputs), a=math.sqrt(5))
            )
            weights.lora_b = self.parameter(up)
        else:
            weights.lora_a = self.parameter(down, lambda t: nn.init.normal_(t, std=0.02))
            weights.lora_b = self.parameter(up, lambda t: nn.init.normal_(t, std=0.02))

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the updated parameter; all of ``rows`` use one adapter, and ``value`` is the base's parameter."""
        own: Any = self.own(rows.names[0])
        # Rounded once on a base of lower precision, as a merge is.
        return (value + self._update(own.lora_a, own.lora_b, own.config.scale, rows.leaf, value)).to(value.dtype)

    def _update(self, a: Tensor, b: Tensor, scale: float, leaf: nn.Module, like: Tensor) -> Tensor:
        update = scale * (b @ a)
        turned = like.dim() == 3 and getattr(leaf, "is_transposed", False)
        return (update.transpose(1, 2) if turned else update).reshape(like.shape)

    def cannot_fuse(self, name: str) -> str:
        return "it changes weights, and not what a module returns"

    def cannot_route(self, name: str) -> str:
        return "it changes weights, which are the same for all tokens of a row"

    def merge(self, name: str, leaf: nn.Module) -> None:
        """Add ``s B A`` to the parameter.

        Raises:
            AttachError: the base's weight is quantised.
        """
        weight, own = leaf.get_parameter(self.site.parameter), self.own(name)
        if not weight.is_floating_point():
            where = f"{self.site.leaf}.{self.site.parameter}"
            raise quantised(where, name, weight)
        update = self._update(own.lora_a.double(), own.lora_b.double(), self.config(name).scale, leaf, weight)
        with torch.no_grad():
            weight.copy_((weight.double() + update).to(weight.dtype))
