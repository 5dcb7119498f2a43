"""The task functions on top, each on the rows of its own task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt import Delta, Rows, Site, Weights
from hfadapt.architecture import StackMap
from hfadapt_kernels import draw_seed, get_activation, rowwise

from ..shared import change_rows
from ..shared.dropout import RowDropout
from ..shared.mask import attention_mask
from ..shared.memory import OwnMemory, memory_of
from .blocks import AttentionBlock, FFNBlock, TransformerLayer, apply_linear, linear
from .config import TopAttention, TopFFN, TopLayer, TopLinear

__all__ = ["TopAttentionDelta", "TopDelta", "TopFFNDelta", "TopLayerDelta", "TopLayers", "TopLinearDelta"]


class TopDelta(Delta):
    """Replaces the last hidden state: ``h_f = TS(h)`` (equation 6)."""

    uses_attention = False

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        memory = memory_of(rows, self.site, value) if self.uses_attention else None
        mask = attention_mask(rows, value, self.site) if self.uses_attention and memory is None else None
        places = torch.arange(value.shape[0], device=value.device)
        # Drawn whichever of the adapters have rows: what is drawn after it does not depend on that.
        drops = self.training and any(getattr(self.config(name), "dropout", 0.0) for name in self.names)
        seed = draw_seed(value.device) if drops else None

        def compute(index: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
            kept = None if memory is None else memory.own(index, pick)
            own = None if mask is None else pick(mask)
            drop = None if seed is None else RowDropout(seed, pick(places))
            return self.task_function(self.weights_of(rows.names[index]), pick(value), own, kept, drop)

        changed = change_rows(rows.batch, value, compute)
        if memory is not None:
            memory.keep()
        return changed

    def weights_of(self, name: str) -> nn.Module:
        """Return the module with the parameters of the adapter ``name``."""
        return self.own(name)

    def task_function(
        self, weights: Any, x: Tensor, mask: Tensor | None, memory: OwnMemory | None, drop: RowDropout | None
    ) -> Tensor:
        """Return TS(x) ``[B, T, D]`` of one task.

        Args:
            weights: What ``init_weights`` filled.
            x: ``[B, T, D]``.
            mask: Bool ``[B, T]`` of the tokens that are no padding, or None.
            memory: In a decoding call, what the task's rows attended to before; then there is no ``mask``.
            drop: Dropout, in training.
        """
        raise NotImplementedError


class TopLayers(nn.Module):
    """The extra layers of one adapter, by stack; made where the base's sizes are known."""

    def __init__(self, config: TopLayer, widths: Mapping[StackMap, int]) -> None:
        super().__init__()
        self.stacks = nn.ModuleDict()
        for stack, width in widths.items():
            inner, heads = config.inner_size or stack.ffn_size, config.num_heads or stack.num_heads
            layer = TransformerLayer(width, inner, heads, config.activation, config.dropout)
            self.stacks[stack.path.replace(".", "_")] = layer

    def layer_of(self, site: Site) -> nn.Module:
        """Return the layer on top of the stack of ``site``."""
        return self.stacks[site.stack.replace(".", "_")]


class TopLayerDelta(TopDelta):
    """An extra transformer layer."""

    uses_attention = True

    def init_weights(self, weights: Weights, config: TopLayer, shared: nn.Module | None) -> None:
        assert shared is not None

    def weights_of(self, name: str) -> nn.Module:
        shared = self.shared(name)
        assert isinstance(shared, TopLayers)
        return shared.layer_of(self.site)

    def task_function(
        self, weights: Any, x: Tensor, mask: Tensor | None, memory: OwnMemory | None, drop: RowDropout | None
    ) -> Tensor:
        return weights(x, mask, self.site.causal, memory, drop)


class _Projected(TopDelta):
    """``V_D (blocks (V_E x))``."""

    def project(self, weights: Weights, size: int, blocks: Sequence[nn.Module]) -> None:
        """Create V_E, V_D and the blocks between them."""
        weights.encoder, weights.decoder = linear(self.site.width, size), linear(size, self.site.width)
        weights.blocks = nn.ModuleList(blocks)


class TopAttentionDelta(_Projected):
    """Projected attention on top."""

    uses_attention = True

    def init_weights(self, weights: Weights, config: TopAttention, shared: nn.Module | None) -> None:
        options = (config.size, config.num_heads, config.dropout, config.residual, config.norm)
        self.project(weights, config.size, [AttentionBlock(*options) for _ in range(config.num_layers)])

    def task_function(
        self, weights: Any, x: Tensor, mask: Tensor | None, memory: OwnMemory | None, drop: RowDropout | None
    ) -> Tensor:
        z = apply_linear(weights.encoder, x)
        for number, block in enumerate(weights.blocks):
            z = block(z, mask, self.site.causal, memory, str(number), drop)
        return apply_linear(weights.decoder, z)


class TopFFNDelta(_Projected):
    """Projected feed-forward networks on top."""

    def init_weights(self, weights: Weights, config: TopFFN, shared: nn.Module | None) -> None:
        options = (config.hidden_layers, config.activation, config.dropout, config.residual, config.norm)
        blocks = [FFNBlock(config.size, config.hidden, *options) for _ in range(config.num_layers)]
        self.project(weights, config.size, blocks)

    def task_function(
        self, weights: Any, x: Tensor, mask: Tensor | None, memory: OwnMemory | None, drop: RowDropout | None
    ) -> Tensor:
        z = apply_linear(weights.encoder, x)
        for block in weights.blocks:
            z = block(z, drop)
        return apply_linear(weights.decoder, z)


class TopLinearDelta(TopDelta):
    """One square matrix and a non-linearity."""

    def init_weights(self, weights: Weights, config: TopLinear, shared: nn.Module | None) -> None:
        weights.linear = linear(self.site.width, self.site.width)
        if config.init == "identity":
            nn.init.eye_(weights.linear.weight)

    def task_function(
        self, weights: Any, x: Tensor, mask: Tensor | None, memory: OwnMemory | None, drop: RowDropout | None
    ) -> Tensor:
        return rowwise(get_activation(weights.config.activation).fn, apply_linear(weights.linear, x))
