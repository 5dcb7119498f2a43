"""The low-rank update of one linear."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfadapt import Delta, Rows, Weights
from hfadapt.architecture import linear_sizes
from hfadapt.errors import AttachError
from hfadapt.method import FusionPart, tensors_of
from hfadapt_kernels import grouped_lora

from ..shared.gating import add_gate, gate_of_rows
from ..shared.norms import over_tokens
from .prototype import Prototypes

if TYPE_CHECKING:
    from .config import LoRA

__all__ = ["LoRADelta", "quantised", "require_own_weight"]


def quantised(place: str, name: str, weight: object) -> AttachError:
    """The error of a merge into a weight that holds no fractions."""
    return AttachError(
        "cannot fold the update into the weight: the base's weight is quantised",
        where=place,
        got=f"{name}, on {getattr(weight, 'dtype', None) or 'no weight of its own'}",
        allowed="a weight of float32, float16 or bfloat16",
        try_="load the base without quantization_config and merge there, or keep the adapter attached",
    )


def require_own_weight(leaf: nn.Module, place: str) -> None:
    """Raise where a merge would change a weight that is forgotten with the call.

    Raises:
        AttachError: the weight is made of other parameters at every call (a weight norm).
    """
    # Another module may hold the parameter: peft's layers show that of the linear inside.
    if not isinstance(getattr(leaf, "weight", None), nn.Parameter):
        raise AttachError(
            "cannot fold the update into the weight: it is made of other parameters at every call",
            where=place,
            got=type(leaf).__name__,
            allowed="a module whose weight is a parameter",
            try_="keep the adapter attached, or torch.nn.utils.parametrize.remove_parametrizations first",
        )


class LoRADelta(Delta):
    """``y + s (x A^T) B^T`` on a linear's output, or on the slice of it that ``site.part`` names.

    Weights of an adapter: ``lora_a`` ``[R, Din]``, ``lora_b`` ``[O, R]``, O the size of the slice.
    """

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Kaiming-uniform A and zero B: the update starts at nothing."""
        if config.init == "lora":
            weights.lora_a = self.parameter(
                (config.r, self.site.read_width), lambda t: nn.init.kaiming_uniform_(t, a=math.sqrt(5))
            )
            weights.lora_b = self.parameter((self.site.changed_width, config.r))
        else:
            weights.lora_a = self.parameter((config.r, self.site.read_width), lambda t: nn.init.normal_(t, std=0.02))
            weights.lora_b = self.parameter((self.site.changed_width, config.r), lambda t: nn.init.normal_(t, std=0.02))
        if config.bias:
            weights.lora_bias = self.parameter((self.site.changed_width,))
        if config.gate != "none":
            add_gate(self, weights, self.site.read_width)

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the changed output ``[B, T, O]`` of a linear that read ``source`` ``[B, T, Din]``."""
        each = self.each(rows.names)
        first = each[0].config
        a, b = tensors_of(each, "lora_a"), tensors_of(each, "lora_b")
        scales = self.scales(rows.names)
        options = {"dropout": first.dropout, "training": self.training}
        # written out: every slot comes through here, and each function costs a call
        if self.site.part is None and first.gate == "none" and not first.bias:
            return grouped_lora(source, a, b, scales, rows.batch, y=value, **options)
        update = grouped_lora(source, a, b, scales, rows.batch, **options)
        if first.bias:
            update = update + self.biases(rows, update)
        if first.gate != "none":
            update = gate_of_rows(self, source, rows) * update
        return self.add_update(value, update)

    def add_update(self, value: Tensor, update: Tensor) -> Tensor:
        """Return ``value`` with the update added where ``site.part`` says."""
        if self.site.part is None:
            return value + update
        blocks, start, stop = self.site.part
        whole = value.unflatten(-1, (blocks, -1))
        changed = whole[..., start:stop] + update.unflatten(-1, (blocks, -1))
        return whole.slice_scatter(changed, -1, start, stop).flatten(-2)

    def matrices(self, name: str, *, double: bool = False) -> tuple[Tensor, Tensor]:
        """Return A and B of the adapter ``name``, in float64 where ``double``."""
        inside = self.own(name)
        a, b = inside.lora_a, inside.lora_b
        return (a.double(), b.double()) if double else (a, b)

    def biases(self, rows: Rows, like: Tensor) -> Tensor:
        """Return ``s c`` of each row's adapter, as it is added to ``like``; 0 for rows without one."""
        each = [one.config.scale * one.lora_bias for one in self.each(rows.names)]
        return over_tokens(rows.gather(each, 0.0), like).to(like.dtype)

    def cannot_fuse(self, name: str) -> str:
        """A whole linear's ungated update can be fused."""
        if self.site.part is not None:
            return "it changes a slice of a fused linear"
        return "a gate stands behind its projections" if self.config(name).gate != "none" else ""

    def fused_width(self, name: str) -> int:
        return int(self.own(name).lora_a.shape[0])

    def fusion_part(self, name: str, value: Tensor, source: Tensor, rows: Rows) -> FusionPart:
        """The update as a bottleneck without activation; the fusion's query is the linear's output."""
        config, (a, b) = self.config(name), self.matrices(name)
        read = nn.functional.dropout(source, config.dropout, self.training)
        bias = self.own(name).lora_bias if config.bias else None
        return FusionPart(value, nn.functional.linear(read, a), b, bias, config.scale)

    def cannot_route(self, name: str) -> str:
        """A linear's ungated update has a first right singular vector."""
        return "a gate stands behind its projections" if self.config(name).gate != "none" else ""

    def prototype(self, name: str) -> Tensor:
        """The first right singular vector of ``B A``."""
        kept = self.__dict__.setdefault("_prototypes", Prototypes())
        return kept.of(name, list(self.own(name).parameters()), self.matrices, self.training)

    def merge(self, name: str, leaf: nn.Module) -> None:
        """Add ``s B A`` to the weight of ``leaf``.

        Raises:
            AttachError: the update is no change of the weight (a gate), or the weight cannot take it: it is quantised,
                or made of other parameters at every call.
        """
        config: LoRA = self.config(name)
        weight = getattr(leaf, "weight", None)
        if config.gate != "none":
            raise AttachError(
                "cannot fold the update into the weight: its gate depends on the input",
                where=self.site.leaf,
                got=f"{name}: gate={config.gate!r}",
                allowed="gate='none'",
                try_="keep the adapter attached",
            )
        if weight is None or not weight.is_floating_point():
            raise quantised(self.site.leaf, name, weight)
        require_own_weight(leaf, self.site.leaf)
        a, b = self.matrices(name, double=True)
        self.merge_bias(name, leaf)
        # In float64, so that a bfloat16 base is rounded once.
        update = (b @ a) * config.scale
        inputs, outputs = linear_sizes(leaf)
        full = torch.zeros(outputs, inputs, dtype=torch.float64, device=update.device)
        blocks, start, stop = self.site.part or (1, 0, outputs)
        full.unflatten(0, (blocks, -1))[:, start:stop] = update.unflatten(0, (blocks, -1))
        # transformers' Conv1D keeps its weight as [in, out].
        transposed = not hasattr(leaf, "in_features")
        with torch.no_grad():
            weight.copy_((weight.double() + (full.T if transposed else full)).to(weight.dtype))

    def merge_bias(self, name: str, leaf: nn.Module) -> None:
        """Add ``s c`` to the bias of ``leaf``.

        Raises:
            AttachError: it has none.
        """
        config: LoRA = self.config(name)
        if not config.bias:
            return
        bias = getattr(leaf, "bias", None)
        if bias is None:
            raise AttachError(
                "cannot fold the update's bias: the linear has none",
                where=self.site.leaf,
                got=name,
                allowed="a base with a bias there, or an adapter with bias=False",
                try_="keep the adapter attached",
            )
        blocks, start, stop = self.site.part or (1, 0, bias.shape[0])
        full = torch.zeros_like(bias, dtype=torch.float64)
        full.view(blocks, -1)[:, start:stop] = (config.scale * self.own(name).lora_bias.double()).view(blocks, -1)
        with torch.no_grad():
            bias.copy_((bias.double() + full).to(bias.dtype))
