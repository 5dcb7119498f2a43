"""pal_attention against eager torch, one task at a time, and torch.compile of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import TaskBatch
from ..pal_attention import pal_attention
from .case import Case, Workload
from .rivals import compiled, gradients, inference

__all__ = ["cases"]

B, D, S, HEADS, TASKS = 32, 768, 204, 6, 8
_NAMES = ("encoder", "decoder", "query", "key", "value")
_GOAL = 3.0


def eager(x: Tensor, w: dict[str, Tensor], mask: Tensor) -> Tensor:
    """One task as the authors' code computes it: separate projections, explicit scores, gelu after the decoder."""
    rows, tokens, _ = x.shape

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, w[name], w[f"{name}_bias"])

    def split(value: Tensor) -> Tensor:
        return value.view(rows, tokens, HEADS, S // HEADS).permute(0, 2, 1, 3)

    low = linear("encoder", x)
    q, k, v = (split(linear(name, low)) for name in ("query", "key", "value"))
    scores = q @ k.transpose(-1, -2) / (S // HEADS) ** 0.5 + mask
    mixed = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(rows, tokens, S)
    return F.gelu(linear("decoder", mixed))


class _Data:
    """Tensors of one case: 8 tasks, four sequences each, in random order."""

    def __init__(self, tokens: int, dtype: torch.dtype, grad: bool) -> None:
        def leaf(*shape: int, size: float = 1.0) -> Tensor:
            return (torch.randn(shape) * size).to(dtype).requires_grad_(grad)

        self.x = leaf(B, tokens, D)
        shapes = {"encoder": (S, D), "decoder": (D, S), "query": (S, S), "key": (S, S), "value": (S, S)}
        self.weights: dict[str, list[Tensor]] = {}
        for name in _NAMES:
            self.weights[name] = [leaf(*shapes[name], size=shapes[name][1] ** -0.5) for _ in range(TASKS)]
            self.weights[f"{name}_bias"] = [leaf(shapes[name][0], size=0.1) for _ in range(TASKS)]
        self.ids = [i % TASKS for i in torch.randperm(B).tolist()]
        self.batch = TaskBatch.from_ids(self.ids, TASKS)
        self.mask = torch.zeros(B, 1, 1, tokens)
        self.mask[::3, ..., tokens - tokens // 4 :] = -10000.0
        self.inputs = [self.x, *(w for own in self.weights.values() for w in own)]
        self.dtype = str(dtype).removeprefix("torch.")
        self.shape = {"rows": B, "tokens": tokens, "hidden": D, "pal_size": S, "heads": HEADS, "tasks": TASKS}
        self.flops = 2.0 * B * tokens * (2 * D * S + 3 * S * S + 2 * tokens * S)
        self.moved = self.x.element_size() * (2.0 * self.x.numel() + sum(w.numel() for w in self.inputs[1:]))

    def ours(self) -> Tensor:
        weights: dict[str, Any] = {**self.weights}  # by the names of the op's arguments
        return pal_attention(self.x, **weights, batch=self.batch, num_heads=HEADS, mask=self.mask, activation="gelu")

    def loop(self, one: Callable[[Tensor, dict[str, Tensor], Tensor], Tensor] = eager) -> Tensor:
        out = torch.zeros_like(self.x)
        for task in range(TASKS):
            rows = [row for row, own in enumerate(self.ids) if own == task]
            own = {name: tensors[task] for name, tensors in self.weights.items()}
            out[rows] = one(self.x[rows], own, self.mask[rows].to(self.x.dtype))
        return out


def _workload(tokens: int, dtype: torch.dtype, both: bool) -> Workload:
    d = _Data(tokens, dtype, both)
    calls: dict[str, Callable[[], Tensor]] = {"eager, one task at a time": d.loop}
    if tokens == 64:
        # Once a dtype: compiling takes far longer than measuring.
        fast = compiled(eager)
        calls["torch.compile of it"] = lambda: d.loop(fast)

    def timed(call: Callable[[], Tensor]) -> Callable[[], Any]:
        return gradients(call, d.inputs, grad) if both else inference(call)

    grad = torch.randn_like(d.x)
    factor = 3 if both else 1
    rivals = {name: timed(call) for name, call in calls.items()}
    return Workload(timed(d.ours), rivals, factor * d.flops, factor * d.moved, d.dtype, d.shape)


def cases() -> list[Case]:
    """Forward and training at two lengths and dtypes."""
    op, found = "pal_attention", []
    for both, title in ((False, "forward"), (True, "forward + backward")):
        for dtype in ("float32", "bfloat16"):
            for tokens in (64, 128):
                build = lambda t=tokens, d=dtype, both=both: _workload(t, getattr(torch, d), both)  # noqa: E731
                goal = {"eager, one task at a time": _GOAL}
                found.append(Case(f"{op} {title} {dtype} {B}x{tokens} S={S} tasks={TASKS}", op, build, goal))
    return found
