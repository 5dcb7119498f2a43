"""DoRA: the length of each row of a weight and its direction are learned apart (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfadapt import Rows, Weights
from hfadapt.errors import AttachError
from hfadapt.method import tensors_of
from hfadapt_kernels import grouped_lora

from ..shared.norms import keep_without_adapter, over_tokens
from .delta import LoRADelta, require_own_weight

if TYPE_CHECKING:
    from .config import LoRA

__all__ = ["DoRADelta", "row_norms", "weight_of"]


def weight_of(leaf: nn.Module) -> Tensor:
    """Return a linear's weight as ``[O, Din]``; transformers' Conv1D keeps it the other way round.

    Raises:
        AttachError: it is quantised.
    """
    weight = leaf.weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise AttachError(
            "DoRA reads the base's weight, which is quantised",
            where=type(leaf).__name__,
            got=getattr(weight, "dtype", type(weight).__name__),
            allowed="a weight of float32, float16 or bfloat16",
            try_="LoRA(dora=False), or the base without quantization_config",
        )
    weight = weight.detach()
    return weight if hasattr(leaf, "in_features") else weight.T


def row_norms(weight: Tensor) -> Tensor:
    """Return the length of each row ``[O]``, in at least float32."""
    return torch.linalg.vector_norm(weight, dim=1, dtype=torch.promote_types(weight.dtype, torch.float32))


class DoRADelta(LoRADelta):
    """``g |W| / |W + s B A| (W x + s B A x) + b`` for rows of the weight (arXiv:2402.09353, eq. 5).

    Weights of an adapter: those of a LoRA, and ``magnitude`` ``[O]``, the factor g on the length of each row, from 1:
    the paper's m is ``g |W|``. As there (section 4.3), no gradient goes through the length of ``W + s B A``.
    """

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Kaiming-uniform A, zero B and a factor of 1: the update starts at nothing."""
        super().init_weights(weights, config, shared)
        weights.magnitude = self.parameter((self.site.changed_width,), nn.init.ones_)

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the changed output ``[B, T, O]`` of a linear that read ``source`` ``[B, T, Din]``."""
        each = self.each(rows.names)
        a, b = tensors_of(each, "lora_a"), tensors_of(each, "lora_b")
        scales = self.scales(rows.names)
        options = {"dropout": each[0].config.dropout, "training": self.training}
        update = grouped_lora(source, a, b, scales, rows.batch, **options)
        factor = over_tokens(rows.gather(self.factors(rows.names, rows.leaf), 1.0), value).to(value.dtype)
        bias = getattr(rows.leaf, "bias", None)
        whole = value if bias is None else value - bias
        changed = factor * (whole + update)
        changed = changed if bias is None else changed + bias
        if each[0].config.bias:
            changed = changed + self.biases(rows, value)
        return keep_without_adapter(rows, changed.to(value.dtype), value)

    def factors(self, names: Sequence[str], leaf: nn.Module) -> list[Tensor]:
        """Return what each adapter multiplies the rows of the weight by, ``[O]``."""
        weight = weight_of(leaf)
        norms = row_norms(weight)
        found = []
        for one in self.each(names):
            update = one.config.scale * (one.lora_b.detach() @ one.lora_a.detach())
            found.append(one.magnitude * (norms / row_norms(weight + update)).to(one.magnitude.dtype))
        return found

    def cannot_fuse(self, name: str) -> str:
        return "it scales the linear's own output too"

    def cannot_route(self, name: str) -> str:
        return "it scales the linear's own output too"

    def merge(self, name: str, leaf: nn.Module) -> None:
        """Replace the weight of ``leaf`` by ``g |W| / |W + s B A| (W + s B A)``.

        Raises:
            AttachError: it is quantised, or made of other parameters at every call.
        """
        require_own_weight(leaf, self.site.leaf)
        config: LoRA = self.config(name)
        inside, weight = self.own(name), weight_of(leaf).double()
        whole = weight + config.scale * (inside.lora_b.double() @ inside.lora_a.double())
        scaled = (inside.magnitude.double() * row_norms(weight) / row_norms(whole)).unsqueeze(1) * whole
        self.merge_bias(name, leaf)
        with torch.no_grad():
            into: Any = leaf.weight
            into.copy_((scaled if hasattr(leaf, "in_features") else scaled.T).to(into.dtype))
