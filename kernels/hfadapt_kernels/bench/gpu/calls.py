"""One call of each op, as a function of its leaves: the same call runs in float64, in eager torch and in ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import (
    PackedLinear,
    TaskBatch,
    adapter_fusion,
    frozen_linear,
    grouped_lora,
    lora_linear,
    pal_attention,
    parallel_adapter_norm,
    prefix_attention,
)
from .sizes import Size

__all__ = ["OPS", "Call", "make"]


@dataclass
class Call:
    """One call of an op.

    Attributes:
        leaves: Its tensors; those that are differentiated.
        run: ``run(leaves, batch)`` gives the result.
        ids: Task of each row.
        tasks: How many tasks there are.
        bytes: What a perfect forward moves: every input and output once. ``None``: it is bound by arithmetic.
        flops: Operations of the forward.
    """

    leaves: list[Tensor]
    run: Callable[[list[Tensor], TaskBatch], Tensor]
    ids: Tensor
    tasks: int
    bytes: float
    flops: float

    def batch(self) -> TaskBatch:
        return TaskBatch.from_ids(self.ids, self.tasks)


class _Maker:
    """Random leaves on a device; ranks differ between tasks, and a row in five has no task."""

    def __init__(self, size: Size, dtype: torch.dtype, device: str, *, idle: bool) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        self.ranks = [max(1, size.rank - task % 2 * (size.rank // 3)) for task in range(size.tasks)]
        if not idle:
            self.ranks = [size.rank] * size.tasks
        ids = [(row % size.tasks if not idle or row % 5 != 1 else -1) for row in range(size.rows)]
        self.ids = torch.tensor(ids, device=device)[torch.randperm(size.rows, device=device)]
        self.leaves: list[Tensor] = []

    def tensor(self, *shape: int, scale: float = 1.0) -> int:
        """Add a leaf; returns where it stands among them."""
        value = torch.randn(shape, device=self.device) * scale
        self.leaves.append(value.to(self.dtype).requires_grad_())
        return len(self.leaves) - 1

    def weights(self, shape: Callable[[int], tuple[int, ...]]) -> slice:
        first = len(self.leaves)
        for rank in self.ranks:
            dims = shape(rank)
            self.tensor(*dims, scale=dims[-1] ** -0.5)
        return slice(first, len(self.leaves))

    def call(self, run: Any, streams: float, flops: float) -> Call:
        size, element = self.size, self.dtype.itemsize
        weights = sum(leaf.numel() for leaf in self.leaves) - size.rows * size.tokens * size.width
        moved = element * (streams * size.rows * size.tokens * size.width + max(weights, 0))
        return Call(self.leaves, run, self.ids, size.tasks, moved, flops)


def _adapter_norm(m: _Maker) -> Call:
    s = m.size
    x = m.tensor(s.rows, s.tokens, s.width)
    down, up = m.weights(lambda r: (r, s.width)), m.weights(lambda r: (s.width, r))
    down_bias, up_bias = m.weights(lambda r: (r,)), m.weights(lambda r: (s.width,))
    weight, bias = m.tensor(s.width), m.tensor(s.width)

    def run(t: list[Tensor], batch: TaskBatch) -> Tensor:
        return parallel_adapter_norm(
            t[x], t[x], t[down], t[up], batch, down_bias=t[down_bias], up_bias=t[up_bias], activation="gelu", scale=0.7,
            norm="layer", norm_weight=t[weight], norm_bias=t[bias],
        )  # fmt: skip

    return m.call(run, 2, 4.0 * s.rows * s.tokens * s.width * s.rank)


def _lora(m: _Maker) -> Call:
    s = m.size
    x, y = m.tensor(s.rows, s.tokens, s.width), m.tensor(s.rows, s.tokens, s.width)
    a, b = m.weights(lambda r: (r, s.width)), m.weights(lambda r: (s.width, r))
    return m.call(
        lambda t, batch: grouped_lora(t[x], t[a], t[b], 2.0, batch, y=t[y]),
        3,
        4.0 * s.rows * s.tokens * s.width * s.rank,
    )


def _lora_layer(m: _Maker) -> Call:
    s = m.size
    x, weight = m.tensor(s.rows, s.tokens, s.width), m.tensor(s.width, s.width, scale=s.width**-0.5)
    a, b = m.weights(lambda r: (r, s.width)), m.weights(lambda r: (s.width, r))
    flops = 2.0 * s.rows * s.tokens * s.width * (s.width + 2 * s.rank)
    return m.call(lambda t, batch: lora_linear(t[x], t[weight], None, t[a], t[b], 2.0, batch), 2, flops)


def _prefix(m: _Maker) -> Call:
    s = m.size
    dim = s.width // s.heads
    q, k, v = (m.tensor(s.rows, s.heads, s.tokens, dim) for _ in range(3))
    keys, values = (m.weights(lambda r: (s.heads, r, dim)) for _ in range(2))
    flops = 4.0 * s.rows * s.tokens * s.width * (s.tokens + s.rank)
    return m.call(lambda t, batch: prefix_attention(t[q], t[k], t[v], t[keys], t[values], batch), 4, flops)


def _fusion(m: _Maker) -> Call:
    s = m.size
    x = m.tensor(s.rows, s.tokens, s.width)
    hidden = m.weights(lambda r: (s.rows, s.tokens, r))
    up = m.weights(lambda r: (s.width, r))
    q, k, v = (m.tensor(s.width, s.width, scale=s.width**-0.5) for _ in range(3))

    def run(t: list[Tensor], batch: TaskBatch) -> Tensor:
        out = adapter_fusion(t[x], t[hidden], t[up], None, [1.0] * s.tasks, t[q], None, t[k], None, t[v])
        assert isinstance(out, Tensor)
        return out

    return m.call(run, 2, 4.0 * s.rows * s.tokens * s.width * sum(m.ranks))


def _pal(m: _Maker) -> Call:
    s = m.size
    size = 2 * max(2, s.rank // 2)
    m.ranks = [size] * s.tasks
    x = m.tensor(s.rows, s.tokens, s.width)
    encoder, decoder = m.weights(lambda r: (r, s.width)), m.weights(lambda r: (s.width, r))
    q, k, v = (m.weights(lambda r: (r, r)) for _ in range(3))

    def run(t: list[Tensor], batch: TaskBatch) -> Tensor:
        return pal_attention(t[x], t[encoder], t[decoder], t[q], t[k], t[v], batch, num_heads=2)

    return m.call(run, 2, 2.0 * s.rows * s.tokens * size * (2 * s.width + 3 * size + 2 * s.tokens))


def _frozen(m: _Maker) -> Call:
    s = m.size
    x = m.tensor(s.rows, s.tokens, s.width)
    weight = torch.randn(s.width, s.width, device=m.device) * s.width**-0.5
    packed: dict[torch.dtype, PackedLinear] = {}

    def run(t: list[Tensor], batch: TaskBatch) -> Tensor:
        if t[x].dtype == torch.float64:
            return F.linear(t[x], weight.to(m.dtype).double())
        kind = "bfloat16" if t[x].dtype == torch.bfloat16 else "float32"
        if t[x].dtype not in packed:
            packed[t[x].dtype] = PackedLinear(weight.to(t[x].dtype), kind)
        return frozen_linear(t[x], packed[t[x].dtype])

    return m.call(run, 2, 2.0 * s.rows * s.tokens * s.width**2)


_MAKERS: dict[str, Callable[[_Maker], Call]] = {
    "parallel_adapter_norm": _adapter_norm,
    "grouped_lora": _lora,
    "lora_linear": _lora_layer,
    "prefix_attention": _prefix,
    "adapter_fusion": _fusion,
    "pal_attention": _pal,
    "frozen_linear": _frozen,
}
#: The ops, in the order of what there is to learn of them.
OPS = tuple(_MAKERS)


def make(op: str, size: Size, dtype: torch.dtype, device: str, *, idle: bool = True) -> Call:
    """A call of ``op``; with ``idle`` ranks differ and some rows have no task."""
    return _MAKERS[op](_Maker(size, dtype, device, idle=idle))
