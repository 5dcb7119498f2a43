"""Gradients of per-task weights through Triton: one product over the tokens of each task, shared by all ops."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .rows import by_task, pointer_table, precision
from .targets import target_of

if TYPE_CHECKING:
    from .compile import AotCase

__all__ = ["aot_cases", "weight_products"]

# Bytes an element -> block; nothing spills on any target (`hfadapt bench triton-static`).
_CONFIGS = {
    2: {"BI": 64, "BJ": 64, "BK": 32, "num_warps": 4, "num_stages": 2},
    # float32 products without TF32 are sums of single products: they need registers for both operands.
    4: {"BI": 32, "BJ": 32, "BK": 16, "num_warps": 4, "num_stages": 2},
}
# With 4 warps the block above spills 8 bytes there.
_SM_100 = {2: {"BI": 64, "BJ": 64, "BK": 32, "num_warps": 8, "num_stages": 2}}


def _config(size: int, target: str) -> dict[str, int]:
    return (_SM_100 if target == "sm_100" and size in _SM_100 else _CONFIGS)[size]


def weight_products(
    a: Tensor, b: Tensor, shapes: list[torch.Size], order: Tensor, starts: Tensor, tokens: int
) -> list[Tensor]:
    """``a^T b`` over the tokens of each task, float32, of the given shapes; rows in the order of `TaskBatch.order`."""
    import triton

    from .weight_grad import weight_grad_kernel

    out = [torch.empty(shape, dtype=torch.float32, device=a.device) for shape in shapes]
    launch = _config(a.element_size(), target_of(a.device))
    rows, cols = (by_task([shape[i] for shape in shapes], torch.int32, a.device) for i in (0, 1))
    blocks = [triton.cdiv(max(s[i] for s in shapes), launch[name]) for i, name in ((0, "BI"), (1, "BJ"))]
    weight_grad_kernel[(len(shapes), *blocks)](
        a, b, pointer_table(out, a.device), order, starts, rows, cols, tokens, a.shape[-1], b.shape[-1],
        PRECISION=precision(a.dtype), **launch,
    )  # fmt: skip
    return out


def aot_cases(target: str) -> list[AotCase]:
    """Every committed configuration for ``target``."""
    from .compile import AotCase
    from .weight_grad import weight_grad_kernel

    types = {"out_table": "*i64", "order_ptr": "*i64", "starts_ptr": "*i64", "rows_ptr": "*i32", "cols_ptr": "*i32"}
    types |= {"T": "i32", "lda": "i32", "ldb": "i32"}
    return [
        AotCase.make(
            weight_grad_kernel, types | {"a_ptr": f"*{element}", "b_ptr": f"*{element}"}, {"PRECISION": "ieee"},
            _config(size, target), size=64, aligned="lda ldb",
        )
        for element, size in (("bf16", 2), ("fp32", 4))
    ]  # fmt: skip
