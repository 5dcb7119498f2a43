"""parallel_adapter_norm against eager adapters, tuned eager, oneDNN products and torch.compile."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import TaskBatch
from ..parallel_adapter_norm import parallel_adapter_norm
from .case import Case, Workload
from .rivals import compiled, gradients, inference, onednn_linear

__all__ = ["cases"]

B, T, D = 32, 64, 768
_FORWARD = {"float32": {8: 3.2, 64: 2.6, 256: None, 512: 2.4}, "bfloat16": {8: 3.3, 64: 2.2}}
_BOTH = {"float32": {8: 3.0, 64: 2.5, 256: 2.2, 512: 2.1}, "bfloat16": {8: 3.3, 64: 2.2}}


def eager(x: Tensor, residual: Tensor, h: Tensor, wd: Tensor, bd: Tensor, wu: Tensor, bu: Tensor, g: Tensor, b: Tensor):
    """As adapter libraries write it."""
    up = F.linear(F.gelu(F.linear(h, wd, bd)), wu, bu) * 0.7
    return F.layer_norm(x + residual + up, (D,), g, b, 1e-5)


def tuned(x: Tensor, residual: Tensor, h: Tensor, wd: Tensor, bd: Tensor, wu: Tensor, bu: Tensor, g: Tensor, b: Tensor):
    """Eager with sums folded into the product (``addmm``), inference only."""
    hidden = F.gelu(F.linear(h.view(-1, D), wd, bd))
    z = torch.addmm((x + residual).view(-1, D), hidden, wu.t(), alpha=0.7).add_(bu, alpha=0.7)
    return F.layer_norm(z, (D,), g, b, 1e-5).view(x.shape)


def _tensors(rank: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(B, T, D)] * 3 + [(rank, D), (rank,), (D, rank), (D,), (D,), (D,)]
    factors = [1, 1, 1, D**-0.5, 0.1, rank**-0.5, 0.1, 0.1, 0.1]
    tensors = [torch.randn(shape) * factor for shape, factor in zip(shapes, factors, strict=True)]
    tensors[7] += 1
    return [tensor.to(dtype) for tensor in tensors]


def _ours(x, residual, h, wd, bd, wu, bu, g, b):  # type: ignore[no-untyped-def]
    return parallel_adapter_norm(
        x, h, [wd], [wu], TaskBatch.single(B), down_bias=[bd], up_bias=[bu], activation="gelu", scale=0.7,
        residual=residual, norm="layer", norm_weight=g, norm_bias=b,
    )  # fmt: skip


def _forward(rank: int, dtype: torch.dtype) -> Workload:
    args = _tensors(rank, dtype)
    down, up = onednn_linear(args[3], args[4]), onednn_linear(args[5], args[6])
    fast = compiled(eager)

    def onednn() -> Tensor:
        x, residual, h, *_, g, b = args
        return F.layer_norm(x + residual + up(F.gelu(down(h))) * 0.7, (D,), g, b, 1e-5)

    rivals = {
        "eager": lambda: eager(*args),
        "tuned eager": lambda: tuned(*args),
        "eager, oneDNN products": onednn,
        "torch.compile": lambda: fast(*args),
    }
    size = args[0].element_size()
    return Workload(
        ours=inference(lambda: _ours(*args)),
        rivals={name: inference(call) for name, call in rivals.items()},
        flops=4.0 * B * T * D * rank,
        bytes=size * (4.0 * B * T * D + 2 * D * rank),
        dtype=str(dtype).removeprefix("torch."),
        shape={"rows": B * T, "hidden": D, "rank": rank},
    )


def _both(rank: int, dtype: torch.dtype) -> Workload:
    args = [tensor.requires_grad_() for tensor in _tensors(rank, dtype)]
    grad = torch.randn(B, T, D).to(dtype)
    fast = compiled(eager)
    size = args[0].element_size()
    return Workload(
        ours=gradients(lambda: _ours(*args), args, grad),
        rivals={
            "eager": gradients(lambda: eager(*args), args, grad),
            "torch.compile": gradients(lambda: fast(*args), args, grad),
        },
        flops=12.0 * B * T * D * rank,
        # Forward reads x, residual and h, writes out and z; backward reads dout, z and h, writes dz and dh.
        bytes=size * (10.0 * B * T * D + 6 * D * rank),
        dtype=str(dtype).removeprefix("torch."),
        shape={"rows": B * T, "hidden": D, "rank": rank},
    )


def _tasks(loaded: int) -> Workload:
    """Rows of 8 tasks while ``loaded`` are in memory, against one task: the price of a row must not grow."""
    args = _tensors(64, torch.float32)
    x, residual, h, _, _, _, _, g, b = args
    downs = [torch.randn(64, D) * D**-0.5 for _ in range(loaded)]
    ups = [torch.randn(D, 64) / 8 for _ in range(loaded)]
    present = sorted({i * loaded // 8 for i in range(8)})
    batch = TaskBatch.from_ids([i % len(present) for i in range(B)], len(present))
    one = TaskBatch.single(B)

    def call(tasks: list[int], rows: TaskBatch) -> Tensor:
        return parallel_adapter_norm(
            x, h, [downs[t] for t in tasks], [ups[t] for t in tasks], rows, activation="gelu", scale=0.7,
            residual=residual, norm="layer", norm_weight=g, norm_bias=b,
        )  # fmt: skip

    return Workload(
        ours=inference(lambda: call(present, batch)),
        rivals={"one task": inference(lambda: call([0], one))},
        flops=4.0 * B * T * D * 64,
        bytes=4.0 * (4 * B * T * D + 2 * D * 64 * len(present)),
        shape={"rows": B * T, "hidden": D, "rank": 64, "tasks loaded": loaded},
    )


def cases() -> list[Case]:
    """Ranks and dtypes of the table, and the price of loaded tasks."""
    name = "parallel_adapter_norm"
    found = []
    for title, goals, build in (("forward", _FORWARD, _forward), ("forward + backward", _BOTH, _both)):
        for dtype, ranks in goals.items():
            for rank, goal in ranks.items():
                found.append(
                    Case(
                        f"{name} {title} {dtype} r={rank}",
                        name,
                        lambda rank=rank, dtype=dtype, build=build: build(rank, getattr(torch, dtype)),
                        {} if goal is None else {"eager": goal},
                    )
                )
    for loaded in (8, 64, 512):
        # "At most 1.2 times the cost of one task" is a ratio of at least 1 / 1.2.
        goal = {"one task": round(1 / 1.2, 3)}
        found.append(Case(f"{name} {loaded} tasks loaded", name, lambda loaded=loaded: _tasks(loaded), goal))
    return found
