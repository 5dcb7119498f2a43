"""grouped_lora and lora_linear through Triton: configurations, host side, cases for ahead-of-time compilation."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dropout import dropout_threshold
from .reference import drop_elements
from .schema import LINEAR, OP, Gradients, empty_gradients

__all__ = ["aot_cases", "config"]

# (largest rank, BM tokens, BK inputs, BN outputs, BR ranks, warps, stages), chosen so that nothing spills on sm_80,
# sm_90, sm_100 and gfx942 and shared memory fits the smallest; `hfadapt bench triton-static` prints the proof.
_CONFIGS = (
    (16, 16, 64, 128, 16, 4, 2),
    (32, 16, 64, 64, 32, 4, 2),
    (1 << 30, 32, 32, 64, 64, 8, 2),
)


def config(max_rank: int) -> dict[str, int]:
    """Launch configuration for ranks up to ``max_rank``."""
    _, bm, bk, bn, br, warps, stages = next(row for row in _CONFIGS if max_rank <= row[0])
    return {"BM": bm, "BK": bk, "BN": bn, "BR": br, "num_warps": warps, "num_stages": stages}


def _supports(*, device: str, dtype: torch.dtype) -> str | None:
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no kernel for {dtype}"


def _factors(learned: Sequence[Tensor], scale: Sequence[float], device: torch.device) -> Tensor:
    factors = torch.tensor(scale, dtype=torch.float32).to(device, non_blocking=True)
    return factors * torch.cat([t.reshape(1).float() for t in learned]) if learned else factors


def _rows(x: Tensor, ids: Tensor | None) -> tuple[Tensor, int, int]:
    """Ids, number of batch rows and tokens a row; one task for all is one long row."""
    tokens = x.shape[:-1].numel()
    if ids is None:
        return torch.zeros(1, dtype=torch.int64, device=x.device), 1, tokens
    return ids, x.shape[0], tokens // max(x.shape[0], 1)


def _launch(
    x: Tensor, base: Tensor | None, down: list[Tensor], up: list[Tensor], ranks: list[int], outputs: int,
    factors: Tensor, ids: Tensor | None, dropout: float, seed: Tensor | None, backward: bool, need_out: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``out`` and the rank rows of one sweep over the tokens; zeros in the rank rows of tokens without a task."""
    import triton

    from ..triton_common import pointer_table, precision
    from .triton_kernels import lora_rows_kernel

    x = x.contiguous()
    base = None if base is None else base.contiguous()
    out = x.new_empty(*x.shape[:-1], outputs) if need_out else x
    low = x.new_zeros(x.shape[:-1].numel(), max(ranks))
    ids, batch, tokens = _rows(x, ids)
    # Kept in names so that they live until the launch.
    down, up = [w.contiguous() for w in down], [w.contiguous() for w in up]
    launch = config(max(ranks))
    if x.numel() > 0 and outputs > 0:
        lora_rows_kernel[(batch, triton.cdiv(tokens, launch["BM"]))](
            x, x if base is None else base, out, low, pointer_table(down, x.device), pointer_table(up, x.device),
            factors, torch.tensor(ranks, dtype=torch.int32).to(x.device, non_blocking=True), ids,
            ids if seed is None else seed, tokens, x.shape[-1], outputs, max(ranks), dropout_threshold(dropout),
            1.0 / (1.0 - dropout), HAS_BASE=base is not None, BACKWARD=backward, DROPOUT=seed is not None,
            NEED_OUT=need_out, PRECISION=precision(x.dtype), **launch,
        )  # fmt: skip
    return out, low


def _forward(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    a, b, learned, scale, ids, dropout, seed, save = args
    factors, ranks = _factors(learned, scale, x.device), [w.shape[0] for w in a]
    out, low = _launch(x, y, a, b, ranks, b[0].shape[0], factors, ids, dropout, seed, False, True)
    return out, low if save else x.new_empty(0)


def _linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    return _forward(x, F.linear(x, weight, bias), *args)


def _backward(grad: Tensor, x: Tensor, low: Tensor, *args: Any) -> Gradients:
    return _gradients(grad, x, low, None, *args)


def _linear_backward(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, *args: Any) -> Gradients:
    return _gradients(grad, x, low, weight, *args)


def _gradients(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor | None, *args: Any) -> Gradients:
    from ..batch import TaskBatch
    from ..parallel_adapter_norm.triton import weight_products

    a, b, learned, scale, ids, dropout, seed, needs = args
    dx, da, db, dlearned = empty_gradients(x, a, b, learned, needs)
    grad = grad.contiguous()
    factors, ranks = _factors(learned, scale, x.device), [w.shape[0] for w in a]
    base = torch.matmul(grad, weight) if weight is not None and needs[0] else None
    found, g = _launch(grad, base, b, a, ranks, x.shape[-1], factors, ids, dropout, seed, True, needs[0])
    dx = found.view(x.shape) if needs[0] else dx
    rows, batch, tokens = _rows(x, ids)
    order, starts = TaskBatch(rows, len(a)).order()
    if needs[1]:
        kept = drop_elements(x, dropout, seed).contiguous()
        products = weight_products(g, kept, [w.shape for w in a], order, starts, tokens)
        da = [(p * s).to(x.dtype) for p, s in zip(products, factors, strict=True)]
    if needs[2]:
        products = weight_products(grad, low, [w.shape for w in b], order, starts, tokens)
        db = [(p * s).to(x.dtype) for p, s in zip(products, factors, strict=True)]
    if needs[3]:
        # A product with a 0/1 matrix adds the rows of each task in a fixed order, without atomics.
        member = (rows[None, :] == torch.arange(len(a), device=x.device)[:, None]).float()
        sums = member @ (g.float() * low.float()).sum(1).view(batch, tokens).sum(1)
        dlearned = [(v * fixed).reshape(t.shape).to(t.dtype) for v, fixed, t in zip(sums, scale, learned, strict=True)]
    return dx, da, db, dlearned


def aot_cases() -> list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(kernel, signature, constexprs, options) of every committed configuration, for the resource table."""
    from .triton_kernels import lora_rows_kernel

    cases: list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for dtype in ("bf16", "fp32"):
        types = {f"{name}_ptr": f"*{dtype}" for name in ("x", "base", "out", "low")}
        types |= {name: "*i64" for name in ("down_table", "up_table", "ids_ptr", "seed_ptr")}
        types |= {"scales_ptr": "*fp32", "ranks_ptr": "*i32", "threshold": "i64", "keep_scale": "fp32"}
        types |= {name: "i32" for name in ("T", "K", "N", "max_rank")}
        for rank in (16, 32, 64):
            for backward in (False, True):
                launch = config(rank)
                options = {"num_warps": launch.pop("num_warps"), "num_stages": launch.pop("num_stages"), "rank": rank}
                flags = {"HAS_BASE": True, "BACKWARD": backward, "DROPOUT": True, "NEED_OUT": True, "PRECISION": "ieee"}
                constants = flags | launch
                signature = {name: types[name] for name in lora_rows_kernel.arg_names if name not in constants}
                cases.append((lora_rows_kernel, signature, constants, options))
    return cases


OP.register("triton", _forward, _backward, _supports)
LINEAR.register("triton", _linear_forward, _linear_backward, _supports)
