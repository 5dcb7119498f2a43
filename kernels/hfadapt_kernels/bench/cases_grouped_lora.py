"""grouped_lora and lora_linear against peft's algorithm, the real peft layer, sorted slices and torch.compile."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import TaskBatch
from ..frozen_linear import PackedLinear
from ..grouped_lora import grouped_lora, lora_linear
from .case import Case, Workload
from .rivals import compiled, gradients, inference, onednn_linear

__all__ = ["cases"]

D = 768
# (batch rows, tokens, rank, tasks) -> goal of the forward against peft's loop.
_FORWARD = {
    "float32": {(32, 64, 8, 8): 4.0, (32, 64, 8, 32): 4.0, (32, 64, 64, 8): 3.2, (32, 64, 64, 32): 3.2,
                (256, 16, 64, 32): 3.2},
    "bfloat16": {(32, 64, 8, 8): 7.0, (32, 64, 8, 32): 7.0, (32, 64, 64, 8): 4.0, (32, 64, 64, 32): 4.0,
                 (256, 16, 64, 32): 4.0},
}  # fmt: skip
_BOTH = {8: 10.0, 64: 7.0}
_SLICES = 3.5
_LAYER = {"float32": 2.5, "bfloat16": 2.0}


def peft_loop(x: Tensor, y: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], scale: float, ids: list[int]) -> Tensor:
    """The algorithm of peft's mixed-batch forward: gather the rows of a task, update, scatter; task after task."""
    for task in range(len(a)):
        rows = [row for row, own in enumerate(ids) if own == task]
        if rows:
            y[rows] += F.linear(F.linear(x[rows], a[task]), b[task]) * scale
    return y


def sorted_slices(
    x: Tensor, y: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], scale: float, ids: list[int]
) -> Tensor:
    """The best that plain torch does for rows that are sorted by task already: views instead of gathers."""
    parts, start = [], 0
    for task in range(len(a)):
        rows = slice(start, start + ids.count(task))
        start = rows.stop
        delta = F.linear(F.linear(x[rows], a[task]), b[task])
        parts.append(torch.add(y[rows], delta, alpha=scale))
    return torch.cat(parts)


class _Data:
    """Tensors of one case; task ids in random order, and sorted for the slices."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, *, grad: bool = False) -> None:
        self.rows, self.tokens, self.rank, self.tasks = shape
        self.x, self.y = (torch.randn(self.rows, self.tokens, D).to(dtype).requires_grad_(grad) for _ in range(2))
        self.a = [(torch.randn(self.rank, D) * 0.03).to(dtype).requires_grad_(grad) for _ in range(self.tasks)]
        self.b = [(torch.randn(D, self.rank) * 0.03).to(dtype).requires_grad_(grad) for _ in range(self.tasks)]
        self.sorted_ids = sorted(i % self.tasks for i in range(self.rows))
        self.ids = [self.sorted_ids[i] for i in torch.randperm(self.rows).tolist()]
        self.batch = TaskBatch.from_ids(self.ids, self.tasks)
        self.dtype = str(dtype).removeprefix("torch.")
        self.shape = {"rows": self.rows, "tokens": self.tokens, "hidden": D, "rank": self.rank, "tasks": self.tasks}
        self.flops = 4.0 * self.rows * self.tokens * D * self.rank
        self.weights = 2.0 * self.tasks * D * self.rank

    def ours(self) -> Tensor:
        return grouped_lora(self.x, self.a, self.b, 2.0, self.batch, y=self.y)


def _forward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Workload:
    d = _Data(shape, dtype)
    rivals = {
        "peft's loop": inference(lambda: peft_loop(d.x, d.y.clone(), d.a, d.b, 2.0, d.ids)),
        "sorted slices": inference(lambda: sorted_slices(d.x, d.y, d.a, d.b, 2.0, d.sorted_ids)),
    }
    if d.tasks == 8:
        fast = compiled(sorted_slices)
        rivals["torch.compile of slices"] = inference(lambda: fast(d.x, d.y, d.a, d.b, 2.0, d.sorted_ids))
    size = d.x.element_size()
    moved = size * (3.0 * d.x.numel() + d.weights)
    return Workload(inference(d.ours), rivals, d.flops, moved, d.dtype, d.shape)


def _both(shape: tuple[int, int, int, int]) -> Workload:
    d = _Data(shape, torch.float32, grad=True)
    inputs, grad = [d.x, d.y, *d.a, *d.b], torch.randn_like(d.x)
    rivals = {
        "peft's loop": gradients(lambda: peft_loop(d.x, d.y.clone(), d.a, d.b, 2.0, d.ids), inputs, grad),
        "sorted slices": gradients(lambda: sorted_slices(d.x, d.y, d.a, d.b, 2.0, d.sorted_ids), inputs, grad),
    }
    # Forward reads x, y and writes out; backward reads the gradient and x and writes dx.
    moved = 4.0 * (6.0 * d.x.numel() + 3 * d.weights)
    return Workload(gradients(d.ours, inputs, grad), rivals, 3 * d.flops, moved, d.dtype, d.shape)


def _peft_layer(d: _Data, base: torch.nn.Linear) -> Callable[[], Any] | None:
    if importlib.util.find_spec("peft") is None:
        return None
    from peft import LoraConfig, inject_adapter_in_model

    model = torch.nn.Sequential(base)
    for task in range(d.tasks):
        config = LoraConfig(r=d.rank, lora_alpha=2 * d.rank, target_modules=["0"])
        inject_adapter_in_model(config, model, adapter_name=f"t{task}")
    layer: Any = model[0].to(d.x.dtype).eval()
    for task in range(d.tasks):
        layer.lora_A[f"t{task}"].weight.data = d.a[task]
        layer.lora_B[f"t{task}"].weight.data = d.b[task]
    names = [f"t{task}" for task in d.ids]
    return lambda: layer(d.x, adapter_names=names)


def _layer(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Workload:
    d = _Data(shape, dtype)
    base = torch.nn.Linear(D, D).to(dtype)
    rivals = {}
    layer = _peft_layer(d, base)
    if layer is not None:
        rivals["peft"] = inference(layer)
    weight, bias = base.weight.detach(), base.bias.detach()
    rivals["bare base"] = inference(lambda: F.linear(d.x, weight, bias))
    if dtype == torch.float32:
        fast = onednn_linear(weight, bias)
        rivals["bare base, oneDNN"] = inference(lambda: fast(d.x))
    size = d.x.element_size()
    base_flops, moved = 2.0 * d.rows * d.tokens * D * D, size * (2.0 * d.x.numel() + d.weights + D * D)
    rivals["lora_linear, base not packed"] = inference(lambda: lora_linear(d.x, weight, bias, d.a, d.b, 2.0, d.batch))
    packed = PackedLinear(weight, d.dtype)
    ours = inference(lambda: lora_linear(d.x, packed, bias, d.a, d.b, 2.0, d.batch))
    return Workload(ours, rivals, d.flops + base_flops, moved, d.dtype, d.shape)


def _loaded(count: int) -> Workload:
    """Rows of 8 tasks while ``count`` are in memory, against one task: the price of a row must not grow."""
    d = _Data((32, 64, 64, 8), torch.float32)
    a = [torch.randn(64, D) * 0.03 for _ in range(count)]
    b = [torch.randn(D, 64) * 0.03 for _ in range(count)]
    present = sorted({i * count // 8 for i in range(8)})
    batch = TaskBatch.from_ids([i % len(present) for i in d.ids], len(present))
    one = TaskBatch.single(d.rows)

    def call(tasks: list[int], rows: TaskBatch) -> Tensor:
        return grouped_lora(d.x, [a[t] for t in tasks], [b[t] for t in tasks], 2.0, rows, y=d.y)

    moved = 4.0 * (3 * d.x.numel() + d.weights)
    rivals = {"one task": inference(lambda: call([0], one))}
    return Workload(
        inference(lambda: call(present, batch)), rivals, d.flops, moved, d.dtype, d.shape | {"loaded": count}
    )


def cases() -> list[Case]:
    """Forward, training, the whole layer, and the price of loaded tasks."""
    op, found = "grouped_lora", []
    for dtype, goals in _FORWARD.items():
        for shape, goal in goals.items():
            name = f"{op} forward {dtype} {shape[0]}x{shape[1]} r={shape[2]} tasks={shape[3]}"
            build = lambda shape=shape, dtype=dtype: _forward(shape, getattr(torch, dtype))  # noqa: E731
            found.append(Case(name, op, build, {"peft's loop": goal}))
    for shape in ((32, 64, 8, 8), (32, 64, 8, 32), (32, 64, 64, 8), (32, 64, 64, 32)):
        name = f"{op} forward + backward float32 {shape[0]}x{shape[1]} r={shape[2]} tasks={shape[3]}"
        goal = {"peft's loop": _BOTH[shape[2]], "sorted slices": _SLICES}
        found.append(Case(name, op, lambda shape=shape: _both(shape), goal))
    for dtype, goal in _LAYER.items():
        for rank in (8, 64):
            build = lambda rank=rank, dtype=dtype: _layer((32, 64, rank, 8), getattr(torch, dtype))  # noqa: E731
            found.append(Case(f"lora_linear forward {dtype} 32x64 r={rank} tasks=8", op, build, {"peft": goal}))
    for count in (8, 64, 512):
        # "At most 1.2 times the cost of one task" is a ratio of at least 1 / 1.2.
        goal = {"one task": round(1 / 1.2, 3)}
        found.append(Case(f"{op} {count} tasks loaded", op, lambda count=count: _loaded(count), goal))
    return found
