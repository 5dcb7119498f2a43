"""adapter_fusion against AdapterFusion written in eager torch, and against the rank-space form in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter_fusion import adapter_fusion
from ..backend import use_backend
from .case import Case, Workload
from .rivals import compiled, gradients, inference

__all__ = ["cases"]

B, T, D, ADAPTERS, RANK = 32, 64, 768, 8, 48
_EAGER = "eager AdapterFusion"
_GOALS = {False: 6.0, True: 5.0}


def eager(
    x: Tensor, hidden: list[Tensor], up: list[Tensor], up_bias: list[Tensor], query: Tensor, query_bias: Tensor,
    key: Tensor, key_bias: Tensor, value: Tensor,
) -> Tensor:  # fmt: skip
    """As adapter libraries write it: every adapter's output, stacked, through the key and the value projection."""
    outputs = torch.stack([F.linear(z, u, b) for z, u, b in zip(hidden, up, up_bias, strict=True)], dim=2)
    scores = torch.matmul(F.linear(outputs, key, key_bias), F.linear(x, query, query_bias).unsqueeze(-1)).squeeze(-1)
    return torch.matmul(scores.softmax(-1).unsqueeze(2), F.linear(outputs, value)).squeeze(2)


class _Data:
    """Tensors of one case: activations of 8 bottlenecks and the weights of one fusion layer."""

    def __init__(self, dtype: torch.dtype, grad: bool) -> None:
        def leaf(*shape: int, size: float = 1.0) -> Tensor:
            return (torch.randn(shape) * size).to(dtype).requires_grad_(grad)

        self.x = leaf(B, T, D)
        self.hidden = [torch.randn(B, T, RANK).relu().to(dtype).requires_grad_(grad) for _ in range(ADAPTERS)]
        self.up = [leaf(D, RANK, size=0.02) for _ in range(ADAPTERS)]
        self.up_bias = [leaf(D, size=0.02) for _ in range(ADAPTERS)]
        self.query, self.key, self.value = (leaf(D, D, size=D**-0.5) for _ in range(3))
        self.query_bias, self.key_bias = leaf(D, size=0.02), leaf(D, size=0.02)
        vectors = [self.query_bias] if grad else []  # the key bias has no gradient without dropout
        self.inputs = [self.x, *self.hidden, *self.up, *self.up_bias, self.query, self.key, self.value, *vectors]
        self.grad = torch.randn_like(self.x)
        self.dtype = str(dtype).removeprefix("torch.")
        self.shape = {"rows": B, "tokens": T, "hidden": D, "adapters": ADAPTERS, "rank": RANK}
        tokens, columns = B * T, ADAPTERS * (RANK + 1)
        self.flops = 6.0 * D * D * columns + 4.0 * tokens * D * columns + 4.0 * tokens * columns
        weights = 3.0 * D * D + D * columns
        self.moved = self.x.element_size() * (2.0 * tokens * D + tokens * columns + weights)

    def ours(self) -> Tensor:
        out = adapter_fusion(
            self.x, self.hidden, self.up, self.up_bias, [1.0] * ADAPTERS, self.query, self.query_bias, self.key,
            self.key_bias, self.value,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out

    def rank_space(self) -> Tensor:
        with use_backend("reference"):
            return self.ours()

    def rival(self, one: Callable[..., Tensor]) -> Tensor:
        return one(
            self.x, self.hidden, self.up, self.up_bias, self.query, self.query_bias, self.key, self.key_bias, self.value
        )


def _workload(dtype: torch.dtype, both: bool) -> Workload:
    d = _Data(dtype, both)

    def timed(call: Callable[[], Tensor]) -> Callable[[], Any]:
        return gradients(call, d.inputs, d.grad) if both else inference(call)

    calls: dict[str, Callable[[], Tensor]] = {_EAGER: lambda: d.rival(eager), "rank space in plain torch": d.rank_space}
    if dtype == torch.float32:
        fast = compiled(eager)
        calls["torch.compile of eager"] = lambda: d.rival(fast)
    rivals = {name: timed(call) for name, call in calls.items()}
    factor = 3 if both else 1
    return Workload(timed(d.ours), rivals, factor * d.flops, factor * d.moved, d.dtype, d.shape)


def cases() -> list[Case]:
    """Forward and training, float32 and bfloat16."""
    op, found = "adapter_fusion", []
    for both, goal in _GOALS.items():
        for dtype in ("float32", "bfloat16"):
            name = f"{op} {'forward + backward' if both else 'forward'} {dtype} {B}x{T} adapters={ADAPTERS} r={RANK}"
            build = lambda d=dtype, both=both: _workload(getattr(torch, d), both)  # noqa: E731
            found.append(Case(name, op, build, {_EAGER: goal}))
    return found
