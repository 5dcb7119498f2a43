"""The modules that task functions on top are made of."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from hfadapt_kernels import get_activation, row_linear, rowwise

from ..shared import init_projection
from ..shared.attention import attend
from ..shared.dropout import RowDropout
from ..shared.memory import OwnMemory

__all__ = ["EPS", "AttentionBlock", "FFNBlock", "TransformerLayer", "apply_linear", "linear"]


EPS = 1e-12
"""Of every norm here, as BERT and the published code have it."""


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with weights from N(0, 0.02) and bias 0."""
    made = nn.Linear(inputs, outputs)
    init_projection(made.weight.data)
    nn.init.zeros_(made.bias)
    return made


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply what `linear` returned to ``[b, T, inputs]``, each row alone."""
    assert isinstance(layer, nn.Linear)
    return row_linear(x, layer.weight, layer.bias)


class AttentionBlock(nn.Module):
    """``LN(z + drop(W_o MHA(z)))``, multi-head attention within one sequence.

    Args:
        size: S, width of z.
        num_heads: Heads, a divisor of S.
        dropout: Of the probabilities and of the output.
        residual: Add z.
        norm: Norm the sum.
    """

    def __init__(self, size: int, num_heads: int, dropout: float, residual: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.residual = num_heads, dropout, residual
        self.query, self.key, self.value, self.output = (linear(size, size) for _ in range(4))
        self.norm = nn.LayerNorm(size, eps=EPS) if norm else None

    def forward(
        self,
        z: Tensor,
        mask: Tensor | None,
        causal: bool,
        memory: OwnMemory | None = None,
        name: str = "",
        drop: RowDropout | None = None,
    ) -> Tensor:
        """Return ``[B, T, S]``.

        Args:
            z: ``[B, T, S]``.
            mask: Bool ``[B, T]`` of the tokens that may be seen, or None.
            causal: A token sees only those before it, and itself.
            memory: In a decoding call, the keys and values of earlier tokens; then there is no ``mask``.
            name: Of this block in ``memory``.
            drop: Dropout, in training.
        """
        query, key, value = (apply_linear(project, z) for project in (self.query, self.key, self.value))
        seen = None if mask is None else mask.unsqueeze(1)
        if memory is not None:
            (key, value), seen = memory.extend(name, key, value), memory.seen
        elif causal and seen is not None:
            seen = seen & torch.ones(z.shape[1], z.shape[1], dtype=torch.bool, device=z.device).tril()
        inside = None if drop is None else drop.with_probability(self.dropout)
        out = apply_linear(self.output, attend(query, key, value, self.num_heads, seen, causal=causal, drop=inside))
        out = out if drop is None else drop(out, self.dropout)
        out = z + out if self.residual else out
        return out if self.norm is None else self.norm(out)


class FFNBlock(nn.Module):
    """``LN(z + drop(FFN(z)))`` with one or two hidden layers."""

    def __init__(
        self,
        size: int,
        inner: int,
        hidden_layers: int,
        activation: str,
        dropout: float,
        residual: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        widths = [size, *[inner] * hidden_layers, size]
        self.linears = nn.ModuleList(linear(i, o) for i, o in itertools.pairwise(widths))
        self.activation, self.dropout, self.residual = activation, dropout, residual
        self.norm = nn.LayerNorm(size, eps=EPS) if norm else None

    def forward(self, z: Tensor, drop: RowDropout | None = None) -> Tensor:
        """Return ``[B, T, S]``."""
        act = get_activation(self.activation).fn
        out = apply_linear(self.linears[0], z)
        for one in self.linears[1:]:
            out = apply_linear(one, rowwise(act, out))
        out = out if drop is None else drop(out, self.dropout)
        out = z + out if self.residual else out
        return out if self.norm is None else self.norm(out)


class TransformerLayer(nn.Module):
    """One post-norm transformer layer, as BERT's."""

    def __init__(self, size: int, inner: int, num_heads: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.attention = AttentionBlock(size, num_heads, dropout)
        self.ffn = FFNBlock(size, inner, 1, activation, dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        causal: bool,
        memory: OwnMemory | None = None,
        drop: RowDropout | None = None,
    ) -> Tensor:
        """Return ``[B, T, D]``; arguments as of ``AttentionBlock``."""
        return self.ffn(self.attention(x, mask, causal, memory, "layer", drop), drop)
