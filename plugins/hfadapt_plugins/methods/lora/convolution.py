"""LoRA of a convolution, such as the one that cuts an image into patches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt import Rows, Weights
from hfadapt.errors import AttachError
from hfadapt_kernels import draw_seed, drop_rows, row_linear, rowwise

from ..shared.rows import change_rows
from .delta import LoRADelta, require_own_weight

__all__ = ["ConvolutionDelta"]


class ConvolutionDelta(LoRADelta):
    """``y + s B (A * x)``: a convolution with A, then B at each place.

    A has the base's window, stride, padding and dilation, so that this is the update ``s B A`` of the base's weight,
    with A as a matrix over all that a window reads. Weights of an adapter: ``lora_a`` ``[R, C, *window]``, ``lora_b``
    ``[O, R]``.
    """

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Kaiming-uniform A and zero B, as of a linear that reads a whole window."""
        shape = (config.r, self.site.read_width, *self.site.window)
        wide = (self.site.changed_width, config.r)
        if config.init == "lora":
            weights.lora_a = self.parameter(shape, lambda t: nn.init.kaiming_uniform_(t, a=math.sqrt(5)))
            weights.lora_b = self.parameter(wide)
        else:
            weights.lora_a = self.parameter(shape, lambda t: nn.init.normal_(t, std=0.02))
            weights.lora_b = self.parameter(wide, lambda t: nn.init.normal_(t, std=0.02))
        if config.bias:
            weights.lora_bias = self.parameter((self.site.changed_width,))

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the changed output ``[B, O, *places]`` of a convolution that read ``source`` ``[B, C, *sizes]``.

        Raises:
            AttachError: it read one image or sound without an axis of rows.
        """
        axes = len(self.site.window)
        # What has no axis of rows may have been viewed as if its channels were rows.
        if source.dim() != axes + 2 or source.shape[1] != self.site.read_width:
            raise AttachError(
                "a convolution with a LoRA reads one input without rows",
                where=self.site.leaf,
                got=f"a tensor of shape {list(source.shape)}",
                allowed=f"{axes + 2} axes, the first of them the batch's",
                try_="x.unsqueeze(0), a batch of this one input",
            )
        leaf: Any = rows.leaf
        each = self.each(rows.names)
        drop = each[0].config.dropout if self.training else 0.0
        # Drawn whichever of the adapters have rows: a row is the same whoever its neighbours are.
        seed = draw_seed(value.device) if drop else None
        places = torch.arange(value.shape[0], device=value.device)

        def compute(index: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
            one = each[index]
            read = drop_rows(pick(source), drop, seed, pick(places)) if drop else pick(source)
            # Each row by itself: torch chooses its way through a convolution by the number of rows, and sums with it.
            inner = rowwise(functools.partial(_convolve, leaf, weight=one.lora_a), read)
            bias = one.lora_bias if one.config.bias else None
            # B sees one place at a time: a product over the channels, whatever the number of axes.
            update = row_linear(inner.movedim(1, -1), one.lora_b, bias).movedim(-1, 1)
            return pick(value) + (one.config.scale * update).to(value.dtype)

        return change_rows(rows.batch, value, compute)

    def cannot_fuse(self, name: str) -> str:
        return "it changes a convolution, whose places are no tokens"

    def cannot_route(self, name: str) -> str:
        return "it changes a convolution, whose places are no tokens"

    def merge(self, name: str, leaf: nn.Module) -> None:
        """Add ``s B A`` to the weight of ``leaf``.

        Raises:
            AttachError: the weight is made of others at every call (a weight norm), or the base has no bias to take
                the update's.
        """
        require_own_weight(leaf, self.site.leaf)
        weight = leaf.get_parameter("weight")
        own: Any = self.own(name)
        self.merge_bias(name, leaf)
        # In float64, so that a bfloat16 base is rounded once.
        update = self.config(name).scale * (own.lora_b.double() @ own.lora_a.double().flatten(1)).view(weight.shape)
        with torch.no_grad():
            weight.copy_((weight.double() + update).to(weight.dtype))


def _convolve(leaf: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What ``leaf`` would compute with another weight and no bias, padding of any mode included."""
    return type(leaf)._conv_forward(leaf, x, weight, None)
