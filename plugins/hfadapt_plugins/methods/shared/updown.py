"""The delta behind low rank, bottleneck, parallel and scaled adapters: ``v + s (U drop(act(D x + b)) + b')``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hfadapt import Delta, Rows, Site, Weights

try:
    from hfadapt_kernels import parallel_adapter_norm
except ImportError:
    from .interim import parallel_adapter_norm

from .initial import init_pair

__all__ = ["HasUpDown", "UpDown", "UpDownDelta", "UpDownWeights", "updown_variant"]


@dataclass(frozen=True)
class UpDown:
    """The functional form of one down-up delta.

    Args:
        size: R, the width between the two projections.
        activation: Name in ``hfadapt_kernels.ACTIVATIONS``.
        bias: Whether the two projections have biases.
        dropout: Probability of dropping a unit between them.
        scale: s: a number, ``"learned"`` (one a place) or ``"channel"`` (one a hidden unit); both start at 1.
        init: One of ``INITS``.
    """

    size: int
    activation: str = "identity"
    bias: bool = True
    dropout: float = 0.0
    scale: float | str = 1.0
    init: str = "identity"


class HasUpDown(Protocol):
    """A config that says the form of its deltas."""

    def updown(self, site: Site) -> UpDown:
        """Return the form of the delta at ``site``."""
        ...


def updown_variant(form: UpDown) -> str:
    """Return the key of a place: adapters with the same one share a call of the kernel."""
    dropout = f"drop{form.dropout:g}".replace(".", "_") if form.dropout else ""
    scale = form.scale if isinstance(form.scale, str) else ""
    return "__".join(p for p in (form.activation, "" if form.bias else "nobias", dropout, scale) if p)


class UpDownWeights(nn.Module):
    """The parameters of one adapter: ``down [R, D_in]``, ``up [D, R]``, their biases, and a learned scale.

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
            self.scale = nn.Parameter(torch.ones(1 if form.scale == "learned" else width))


class UpDownDelta(Delta):
    """``value + s (U drop(act(D source + b)) + b')``, every row with its own adapter, in one kernel."""

    def init_weights(self, weights: Weights, config: HasUpDown, shared: nn.Module | None) -> None:
        form = config.updown(self.site)
        weights.form = form  # type: ignore[assignment]
        self.dropout = form.dropout  # part of the variant, so the same for every adapter here
        if shared is None:  # else one set of parameters serves every layer
            made = UpDownWeights(form, self.site.read_width, self.site.width)
            for name, parameter in list(made.named_parameters()):
                setattr(weights, name, parameter)

    def weights(self, attribute: str, names: Sequence[str]) -> list[Tensor]:
        return [getattr(self.shared_weights(name) or self.adapters[name], attribute) for name in names]

    def shared_weights(self, name: str) -> nn.Module | None:
        """Return where the parameters of an adapter live that all layers share, or None."""
        shared = self._shared.get(name)
        return None if shared is None else getattr(shared, "weights_of", lambda site: shared)(self.site)

    fuses_norm = False

    def forward(self, value: Tensor, source: Tensor, rows: Rows, **norm: Any) -> Tensor:
        return self.project(value, source, rows, **norm)

    def project(self, value: Tensor, source: Tensor, rows: Rows, **norm: Any) -> Tensor:
        """Call the kernel; ``norm`` is handed on to it."""
        names = rows.names
        form: UpDown = self.adapters[names[0]].form
        if isinstance(form.scale, str):
            scale: Any = self.weights("scale", names)
        else:
            scale = [self.adapters[name].form.scale for name in names]
        return parallel_adapter_norm(
            value,
            source,
            self.weights("down", names),
            self.weights("up", names),
            rows.batch,
            down_bias=self.weights("down_bias", names) if form.bias else None,
            up_bias=self.weights("up_bias", names) if form.bias else None,
            activation=form.activation,
            scale=scale,
            dropout=self.dropout,
            training=self.training,
            **norm,
        )
