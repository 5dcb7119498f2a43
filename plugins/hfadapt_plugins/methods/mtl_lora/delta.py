"""The update of one linear that many tasks share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfadapt import Rows, Weights
from hfadapt.method import tensors_of
from hfadapt_kernels import grouped_lora

from ..lora import LoRADelta

if TYPE_CHECKING:
    from .config import MTLLoRA

__all__ = ["MTLLoRADelta", "task_up"]


def task_up(b: Tensor, mix: Tensor, matrix: Tensor, temperature: float) -> Tensor:
    """Return ``(sum_i p_i B_i) L`` ``[O, R]``, ``p = softmax(w / temperature)`` (arXiv:2410.09437, section 3).

    The update of the task is that of a LoRA with this B. Computed in at least float32, outside of autocast.

    Args:
        b: The B_i, ``[N, O, R]``.
        mix: w, ``[N]``.
        matrix: L, ``[R, R]``, or its diagonal ``[R]``.
        temperature: Above 0.
    """
    wide = torch.promote_types(b.dtype, torch.float32)
    with torch.autocast(b.device.type, enabled=False):
        shares = torch.softmax(mix.to(wide) / temperature, 0)
        mixed = (shares @ b.to(wide).flatten(1)).view(b.shape[1:])
        inner = matrix.to(wide)
        return (mixed * inner if inner.dim() == 1 else mixed @ inner).to(b.dtype)


class MTLLoRADelta(LoRADelta):
    """``y + s (x A^T) (B_t L_t)^T`` on a linear's output, ``B_t`` the task's mixture of the group's B_i.

    Weights of an adapter: ``lora_a`` ``[R, Din]`` and ``lora_b`` ``[N, O, R]``, which are one parameter each for all
    adapters of a group; ``mix`` ``[N]`` and ``matrix`` ``[R, R]`` or ``[R]``, its own. A task's rows go through
    ``grouped_lora`` as those of a LoRA with the matrices that come out of them.
    """

    ties_adapters = True

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Take A and the B_i of an adapter of the group that is here, or make them; L is the identity."""
        mate = self._mate(config.group)
        if mate is not None:
            weights.lora_a, weights.lora_b = mate.lora_a, mate.lora_b
        else:
            shape, down = (config.n_up, self.site.changed_width, config.r), (config.r, self.site.read_width)
            weights.lora_a = self.parameter(down, lambda t: nn.init.kaiming_uniform_(t, a=math.sqrt(5)))
            weights.lora_b = self.parameter(shape, None if config.init == "lora" else _normal)
        # Equal shares of B_i that are equal would get equal gradients, and stay so for ever.
        bound = 1 / math.sqrt(config.n_up)
        weights.mix = self.parameter((config.n_up,), lambda t: nn.init.uniform_(t, -bound, bound))
        if config.task_matrix == "full":
            weights.matrix = self.parameter((config.r, config.r), nn.init.eye_)
        else:
            weights.matrix = self.parameter((config.r,), nn.init.ones_)

    def _mate(self, group: str) -> Any:
        """Return the weights of an adapter of a group, or None."""
        return next((self.own(name) for name in self.names if self.config(name).group == group), None)

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the changed output ``[B, T, O]`` of a linear that read ``source`` ``[B, T, Din]``."""
        each = self.each(rows.names)
        configs: list[MTLLoRA] = [one.config for one in each]
        a, scales = tensors_of(each, "lora_a"), [config.scale for config in configs]
        # One after the other, so that a task without a row has no gradient rather than one of zeros.
        b = [task_up(one.lora_b, one.mix, one.matrix, one.config.temperature) for one in each]
        options = {"dropout": configs[0].dropout, "training": self.training}
        if self.site.part is None:
            return grouped_lora(source, a, b, scales, rows.batch, y=value, **options)
        return self.add_update(value, grouped_lora(source, a, b, scales, rows.batch, **options))

    def matrices(self, name: str, *, double: bool = False) -> tuple[Tensor, Tensor]:
        """Return A and ``B_t L_t`` of the adapter ``name``, in float64 where ``double``."""
        one, config = self.own(name), self.config(name)
        parts: list[Tensor] = [one.lora_b, one.mix, one.matrix]
        up, mix, matrix = [part.double() for part in parts] if double else parts
        b = task_up(up, mix, matrix, config.temperature)
        return (one.lora_a.double() if double else one.lora_a), b


def _normal(tensor: Tensor) -> Tensor:
    return nn.init.normal_(tensor, std=0.02)
