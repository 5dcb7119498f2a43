"""The delta behind low rank, bottleneck, parallel and scaled adapters: ``v + s (U drop(act(D x + b)) + b')``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfadapt import Delta, Rows, Site, Weights
from hfadapt.method import FusionPart, tensors_of
from hfadapt_kernels import TaskBatch, get_activation, parallel_adapter_norm

from .gating import over_row
from .initial import init_pair
from .norms import add_norm, keep_without_adapter, norm_eps, over_tokens, own_norm

__all__ = ["HasUpDown", "UpDown", "UpDownDelta", "UpDownWeights", "updown_variant"]


@dataclass(frozen=True)
class UpDown:
    """The functional form of one down-up delta.

    Args:
        size: R, the width between the two projections.
        activation: Name in ``hfadapt_kernels.ACTIVATIONS``.
        bias: Whether the two projections have biases.
        dropout: Probability of dropping a unit between them.
        scale: s: a number, ``"learned"`` (one a place) or ``"channel"`` (one a hidden unit), both from 1, or
            ``"lhuc"``: ``2 sigmoid(c)`` with one c a hidden unit, from 0.
        init: One of ``INITS``.
        norm_before: A LayerNorm of the adapter's own on what it reads.
        norm_after: A LayerNorm of the adapter's own: ``"delta"`` on what it adds, ``"sum"`` on value and delta.
        norm_eps: Epsilon of these norms; None takes that of the base's norm at the site.
        gate: Multiply what is added by the mean over a row of ``sigmoid(w x + c)`` (UniPELT, Mao et al. 2022):
            ``"mean"`` over its real tokens, ``"mean_padded"`` over its padding too; "" for no gate.
    """

    size: int
    activation: str = "identity"
    bias: bool = True
    dropout: float = 0.0
    scale: float | str = 1.0
    init: str = "identity"
    norm_before: bool = False
    norm_after: str = ""
    norm_eps: float | None = 1e-5
    gate: str = ""

    def __post_init__(self) -> None:
        _ = self.plain  # kept before torch.compile traces a call, which cannot take the property's lock

    @functools.cached_property
    def plain(self) -> bool:
        """Whether one call of the kernel is all."""
        return not (self.norm_before or self.norm_after or self.gate)


class HasUpDown(Protocol):
    """A config that says the form of its deltas."""

    def updown(self, site: Site) -> UpDown:
        """Return the form of the delta at ``site``."""
        ...


def updown_variant(form: UpDown) -> str:
    """Return the key of a place: adapters with the same one share a call of the kernel."""
    flags = {
        "nobias": not form.bias,
        f"drop{form.dropout:g}".replace(".", "_"): bool(form.dropout),
        str(form.scale): isinstance(form.scale, str),
        "normbefore": form.norm_before,
        f"norm{form.norm_after}": bool(form.norm_after),
        "gate": bool(form.gate),
        "padded": form.gate == "mean_padded",
    }
    return "__".join([form.activation, *(name for name, on in flags.items() if on)])


class UpDownWeights(nn.Module):
    """The parameters of one adapter: ``down [R, D_in]``, ``up [D, R]``, their biases, and what its form adds.

    Args:
        form: What to make.
        read_width: D_in.
        width: D.
    """

    def __init__(self, form: UpDown, read_width: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(form.size, read_width))
        self.up = nn.Parameter(torch.empty(width, form.size))
        init_pair(self.down.data, self.up.data, form.init)
        if form.bias:
            self.down_bias = nn.Parameter(torch.zeros(form.size))
            self.up_bias = nn.Parameter(torch.zeros(width))
        if isinstance(form.scale, str):
            start = torch.zeros if form.scale == "lhuc" else torch.ones
            self.scale = nn.Parameter(start(1 if form.scale == "learned" else width))
        if form.norm_before:
            add_norm(self, "norm_before", read_width)
        if form.norm_after:
            add_norm(self, "norm_after", width)
        if form.gate:
            self.gate_weight = nn.Parameter(torch.zeros(read_width).normal_(std=0.02))
            self.gate_bias = nn.Parameter(torch.zeros(1))


class UpDownDelta(Delta):
    """``value + s (U drop(act(D source + b)) + b')``, every row with its own adapter, in one kernel."""

    #: ``weights`` makes the second projections that the kernel takes of others (one a head).
    keeps_up_apart: ClassVar[bool] = False

    def init_weights(self, weights: Weights, config: HasUpDown, shared: nn.Module | None) -> None:
        form = config.updown(self.site)
        weights.form = form  # type: ignore[assignment]
        self.dropout = form.dropout  # part of the variant, so the same for every adapter here
        self.fuses_norm = form.plain and self.site.part is None
        if shared is None:  # else one set of parameters serves every layer
            made = UpDownWeights(form, self.site.read_width, self.site.changed_width)
            for name, parameter in list(made.named_parameters()):
                setattr(weights, name, parameter)

    def weights(self, attribute: str, names: Sequence[str]) -> list[Tensor]:
        return tensors_of(self.all_weights_of(names), attribute)

    def all_weights_of(self, names: Sequence[str]) -> list[Any]:
        """Return `weights_of` of several adapters."""
        return [self.weights_of(name) for name in names] if self._shared else self.each(names)

    def weights_of(self, name: str) -> Any:
        """Return the module that holds an adapter's parameters: its own here, or the one that layers share."""
        shared = self._shared.get(name)
        return self.own(name) if shared is None else shared.weights_of(self.site)

    def form(self, name: str) -> UpDown:
        """Return the functional form of the adapter ``name`` here."""
        return self.own(name).form

    def read(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return what the down projection reads; AdapterFusion queries with it."""
        return source

    def forward(self, value: Tensor, source: Tensor, rows: Rows, **norm: Any) -> Tensor:
        return self.add_to(value, self.read(value, source, rows), rows, **norm)

    def add_to(self, value: Tensor, read: Tensor, rows: Rows, **norm: Any) -> Tensor:
        """Return ``value`` plus the delta of ``read``; ``norm`` are arguments of the kernel for the norm behind it."""
        form = self.form(rows.names[0])
        if form.plain:
            return self.project(value, read, rows, **norm)
        change = self.project(torch.zeros_like(value), self.normed(read, "before", rows), rows)
        if form.gate:
            change = change * self.gate(read, rows)
        if form.norm_after == "sum":
            changed = self.normed(value + change, "after", rows)
        else:
            changed = value + self.normed(change, "after", rows)
        return keep_without_adapter(rows, changed, value)

    def cannot_fuse(self, name: str) -> str:
        form = self.form(name)
        if form.gate or form.norm_after:
            return "a gate or a norm of its own stands behind its projections"
        return ""

    def fused_width(self, name: str) -> int:
        return int(self.weights_of(name).down.shape[0])

    def fusion_part(self, name: str, value: Tensor, source: Tensor, rows: Rows) -> FusionPart:
        one = Rows((name,), TaskBatch.single(value.shape[0], value.device), rows.routing, rows.leaf)
        read = self.read(value, source, one)
        form = self.form(name)
        inside = self.weights_of(name)
        low = F.linear(self.normed(read, "before", one), inside.down, inside.down_bias if form.bias else None)
        low = F.dropout(get_activation(form.activation).fn(low), form.dropout, self.training)
        up, (bias,) = self.weights("up", [name])[0], self.weights("up_bias", [name]) if form.bias else (None,)
        scale: Any = form.scale
        if isinstance(scale, str):
            scale = 2 * torch.sigmoid(inside.scale) if scale == "lhuc" else inside.scale
            if scale.numel() > 1:  # one a hidden unit: part of the projection
                up, bias, scale = up * scale.unsqueeze(1), None if bias is None else bias * scale, 1.0
        return FusionPart(read if read.shape == value.shape else value, low, up, bias, scale)

    def scale_of(self, weights: Weights) -> float:
        """The number in the adapter's form."""
        return cast(float, weights.form.scale)

    def project(self, value: Tensor, read: Tensor, rows: Rows, **norm: Any) -> Tensor:
        """Call the kernel."""
        inside = self.all_weights_of(rows.names)
        each = self.each(rows.names) if self._shared else inside
        form: UpDown = each[0].form
        if isinstance(form.scale, str):
            scale: Any = tensors_of(inside, "scale")
            if form.scale == "lhuc":
                scale = [2 * torch.sigmoid(c) for c in scale]
        else:
            scale = self.scales(rows.names)
        # asked for by name only where a subclass keeps them in another form: every slot comes through here
        up = self.weights("up", rows.names) if self.keeps_up_apart else tensors_of(inside, "up")
        return parallel_adapter_norm(
            value,
            read,
            tensors_of(inside, "down"),
            up,
            rows.batch,
            down_bias=tensors_of(inside, "down_bias") if form.bias else None,
            up_bias=tensors_of(inside, "up_bias") if form.bias else None,
            activation=form.activation,
            scale=scale,
            dropout=self.dropout,
            training=self.training,
            **norm,
        )

    def normed(self, tensor: Tensor, where: str, rows: Rows) -> Tensor:
        """Apply the adapter's own LayerNorm ``before`` or ``after`` the projections, where its form has one."""
        form = self.form(rows.names[0])
        if not (form.norm_before if where == "before" else form.norm_after):
            return tensor
        weights = self.weights(f"norm_{where}_weight", rows.names)
        biases = self.weights(f"norm_{where}_bias", rows.names)
        eps = norm_eps(rows.leaf) if form.norm_eps is None else form.norm_eps
        return own_norm(tensor, weights, biases, rows, eps)

    def gate(self, read: Tensor, rows: Rows) -> Tensor:
        """Return each row's gate, ``[B, 1, 1]``; of a row that is one vector ``[B, 1]``."""
        weight = over_tokens(rows.gather(self.weights("gate_weight", rows.names), 0.0), read)
        bias = over_tokens(rows.gather(self.weights("gate_bias", rows.names), 0.0), read)
        gates = torch.sigmoid((read * weight).sum(-1, keepdim=True) + bias)
        padded = self.form(rows.names[0]).gate == "mean_padded"
        return over_row(gates, rows, self.site, padding=padded) if read.dim() == 3 else gates
