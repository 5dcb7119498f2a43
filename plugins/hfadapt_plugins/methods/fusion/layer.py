"""One fusion layer: attention over the adapters of one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hfadapt.method import Tap
from hfadapt.runtime import applies, ask_loss_term, shape_like_batch, source_of
from hfadapt_kernels import KeptProducts, TaskBatch, adapter_fusion

if TYPE_CHECKING:
    from hfadapt import Delta
    from hfadapt.method import FusionPart
    from hfadapt.routing import Routing

    from .config import FusionConfig

__all__ = ["FusionLayer"]

_START, _STEPS = 50.0, 1000.0
_KEPT: WeakKeyDictionary[FusionLayer, KeptProducts] = WeakKeyDictionary()


class FusionLayer(nn.Module):
    """``value + sum_n p_n V u_n`` at one side of a leaf.

    Args:
        config: The options.
        names: The adapters.
        width: D.
        side: ``"input"`` or ``"output"``.
        residual: Where ``value`` is the sum f + a, the tap that holds a; else None.
        path: Of this layer in its model.
    """

    penalty_said = ("the penalty of AdapterFusion", "add hfadapt.fusion_regularizer(model) to your loss")

    def __init__(
        self,
        config: FusionConfig,
        names: tuple[str, ...],
        width: int,
        side: str,
        residual: Tap | None = None,
        path: str = "",
    ) -> None:
        super().__init__()
        self.config = config
        self.names = names
        self.kept = names
        self.side = side
        self.residual = residual
        self.width = width
        self.path = path
        self.record: Any = None
        if config.query:
            self.query_weight = nn.Parameter(torch.empty(width, width).normal_(std=0.02))
            self.query_bias = nn.Parameter(torch.zeros(width))
        if config.key:
            self.key_weight = nn.Parameter(torch.empty(width, width).normal_(std=0.02))
            self.key_bias = nn.Parameter(torch.zeros(width))
        if config.value:
            near = torch.full((width, width), 1e-6).fill_diagonal_(1.0)
            self.value_weight = nn.Parameter(near)
        if config.temperature:
            # A parameter that no optimizer gets: it is saved and loaded with the others.
            self.temperature = nn.Parameter(torch.tensor(_START), requires_grad=False)

    def forward(
        self, value: Tensor, leaf_input: Tensor | None, leaf: nn.Module, routing: Routing, index: int
    ) -> Tensor:
        """Return the changed tensor; rows outside the step keep ``value``."""
        if self.training and self.config.value and self.config.regularization:
            ask_loss_term(routing, self.path, self)
        shaped = _with_tokens(value, routing)
        if not torch.is_autocast_enabled(value.device.type):
            shaped = shaped.to(next(self.parameters(), value).dtype)
        changed = self.mix(shaped, leaf_input, leaf, routing)
        inside = routing.members(index, value.device)
        if inside is not None:
            repeats = shaped.shape[0] // inside.shape[0]
            inside = inside.repeat_interleave(repeats) if repeats > 1 else inside
            changed = torch.where(inside.view(-1, 1, 1), changed, shaped)
        return changed.to(value.dtype).view(value.shape)

    def mix(self, value: Tensor, leaf_input: Tensor | None, leaf: nn.Module, routing: Routing) -> Tensor:
        """``value + sum_n p_n V u_n`` for every row; ``value`` is ``[B, T, D]``."""
        names, parts = self.parts(value, leaf_input, leaf, routing)
        if not parts:
            return value
        residual = self.residual_of(value, leaf, routing)
        query = residual if self.config.query_before_ln else parts[-1].query
        identity = self._identity(value)
        query_weight, query_bias = self._pair("query", identity)
        key_weight, key_bias = self._pair("key", identity)
        value_weight = getattr(self, "value_weight", identity)
        if self.config.temperature:
            # Dividing the queries divides the scores; a number would be read from the device.
            query_weight = query_weight / self.temperature
            query_bias = None if query_bias is None else query_bias / self.temperature
        biased = any(p.bias is not None for p in parts)
        mixed, weights = adapter_fusion(
            query.to(value.dtype),
            [p.hidden for p in parts],
            [p.up for p in parts],
            [value.new_zeros(self.width) if p.bias is None else p.bias for p in parts] if biased else None,
            [p.scale for p in parts],
            query_weight,
            query_bias,
            key_weight,
            key_bias,
            value_weight,
            dropout=self.config.dropout,
            training=self.training,
            return_weights=True,
            kept=self._kept(),
        )
        if self.config.residual_before and self.config.value:
            mixed = mixed + nn.functional.linear(residual, value_weight) - residual
        if self.record is not None:
            self.record.add(names, weights.detach(), routing)
        self._cool()
        return value + mixed.to(value.dtype)

    def parts(
        self, value: Tensor, leaf_input: Tensor | None, leaf: nn.Module, routing: Routing
    ) -> tuple[list[str], list[FusionPart]]:
        """What each adapter that takes part here adds."""
        from hfadapt import Rows

        names: list[str] = []
        parts: list[FusionPart] = []
        for name in self.kept:
            for delta in leaf.hfadapt.side(self.side):  # type: ignore[union-attr]
                if name in delta.names and applies(delta, routing):
                    batch = TaskBatch.single(value.shape[0], value.device)
                    source = _with_tokens(source_of(delta, value, leaf_input, routing), routing).to(value.dtype)
                    parts.append(delta.fusion_part(name, value, source, Rows((name,), batch, routing, leaf)))
                    names.append(name)
        return names, parts

    def residual_of(self, value: Tensor, leaf: nn.Module, routing: Routing) -> Tensor:
        """The sub-layer's output f, without the residual stream a."""
        if self.residual is None:
            return value
        stream = routing.taps[self.residual.key]
        time_first = leaf.hfadapt.row_axis and stream.dim() > 2  # type: ignore[union-attr]
        return value - (stream.transpose(0, 1) if time_first else stream).view_as(value)

    def penalty(self) -> Tensor | None:
        """``weight * ||V - I||_F^2``, or None where V is fixed, free or frozen."""
        if not (self.config.value and self.config.regularization and self.value_weight.requires_grad):
            return None
        difference = self.value_weight - torch.eye(
            self.width, dtype=self.value_weight.dtype, device=self.value_weight.device
        )
        return self.config.regularization_weight * difference.square().sum()

    def _kept(self) -> KeptProducts | None:
        """Where products of this layer's weights are kept; they follow no copy of it and stand in no file."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        return _KEPT.setdefault(self, KeptProducts())

    def _identity(self, like: Tensor) -> Tensor:
        if self.config.query and self.config.key and self.config.value:
            return like  # not used
        return torch.eye(self.width, dtype=like.dtype, device=like.device)

    def _pair(self, which: str, identity: Tensor) -> tuple[Tensor, Tensor | None]:
        return getattr(self, f"{which}_weight", identity), getattr(self, f"{which}_bias", None)

    def _cool(self) -> None:
        """Lower the temperature by one training step; evaluation leaves it as it is."""
        if self.config.temperature and self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.temperature.sub_(_START / _STEPS).clamp_min_(1.0)


def _with_tokens(tensor: Tensor, routing: Routing) -> Tensor:
    """View ``[B T, D]`` (OPT's feed-forward part) and ``[B, D]`` as ``[B, T, D]``."""
    tensor = shape_like_batch(tensor, routing.batch_size)
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor


def deltas_with(leaf: nn.Module, side: str, name: str, depth: int) -> list[Delta]:
    """The deltas at one side of a leaf (and one depth of a shared layer) that have the adapter ``name``."""
    return [
        d
        for d in leaf.hfadapt.side(side)  # type: ignore[union-attr]
        if name in d.names and (not d.site.shared_layer or d.site.layer == depth)
    ]
