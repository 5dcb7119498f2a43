"""The core of adapter_fusion through Triton: configurations, host side, cases for ahead-of-time compilation."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dropout import dropout_threshold
from .schema import OP, empty_gradients, empty_results

__all__ = ["aot_cases", "config"]


def config(max_rank: int) -> dict[str, int]:
    """Launch configuration for bottlenecks up to ``max_rank``: BM tokens, BR columns at a time."""
    columns = min(64, max(16, 1 << (max_rank - 1).bit_length()))
    return {"BM": 32 if columns < 64 else 16, "BR": columns, "num_warps": 4, "num_stages": 1}


def _supports(*, device: str, dtype: torch.dtype, adapters: int) -> str | None:
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no Triton kernel for {dtype}"


def _forward(
    products: Tensor,
    hidden: list[Tensor],
    shift: Tensor | None,
    temperature: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    import triton

    from ..triton_common import pointer_table
    from .triton_kernels import adapter_fusion_fwd_kernel

    products, hidden = products.contiguous(), [z.contiguous() for z in hidden]
    weighted, weights = empty_results(products, len(hidden))
    table = pointer_table(hidden, products.device)
    ranks = torch.tensor([z.shape[1] for z in hidden], dtype=torch.int32).to(products.device, non_blocking=True)
    (tokens, columns), launch = products.shape, config(max(z.shape[1] for z in hidden))
    if tokens:
        adapter_fusion_fwd_kernel[(triton.cdiv(tokens, launch["BM"]),)](
            products, table, ranks, products if shift is None else shift.contiguous(), table if seed is None else seed,
            weighted, weights, tokens, columns, len(hidden), 1.0 / temperature, dropout_threshold(dropout),
            1.0 / (1.0 - dropout), BIASED=columns != sum(z.shape[1] for z in hidden), SHIFT=shift is not None,
            DROPOUT=seed is not None, **launch,
        )  # fmt: skip
    return weighted, weights


def _backward(
    grad_weighted: Tensor,
    grad_weights: Tensor | None,
    weights: Tensor,
    products: Tensor,
    hidden: list[Tensor],
    shift: Tensor | None,
    temperature: float,
    dropout: float,
    seed: Tensor | None,
    need_hidden: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    import triton

    from ..triton_common import pointer_table
    from .triton_kernels import adapter_fusion_bwd_kernel

    products, hidden = products.contiguous(), [z.contiguous() for z in hidden]
    grads = empty_gradients(products, hidden, shift, need_hidden)
    tables = [pointer_table(zs, products.device) for zs in (hidden, grads[1])]
    ranks = torch.tensor([z.shape[1] for z in hidden], dtype=torch.int32).to(products.device, non_blocking=True)
    (tokens, columns), launch = products.shape, config(max(z.shape[1] for z in hidden))
    grad_weighted, extra = grad_weighted.contiguous(), weights if grad_weights is None else grad_weights.contiguous()
    if tokens:
        adapter_fusion_bwd_kernel[(triton.cdiv(tokens, launch["BM"]),)](
            grad_weighted, extra, weights, products, tables[0], ranks, ranks if seed is None else seed, grads[0],
            tables[1], products if shift is None else grads[2], tokens, columns, len(hidden), 1.0 / temperature,
            dropout_threshold(dropout), 1.0 / (1.0 - dropout), BIASED=columns != sum(z.shape[1] for z in hidden),
            SHIFT=shift is not None, GRAD_WEIGHTS=grad_weights is not None, NEED_HIDDEN=need_hidden,
            DROPOUT=seed is not None, **launch,
        )  # fmt: skip
    return grads


def aot_cases() -> list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(kernel, signature, constexprs, options) of every committed configuration, for the resource table."""
    from .triton_kernels import adapter_fusion_bwd_kernel, adapter_fusion_fwd_kernel

    cases: list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for dtype in ("bf16", "fp32"):
        types = {f"{name}_ptr": f"*{dtype}" for name in ("y", "g", "dy", "shift", "dshift", "out")}
        types |= {"weights_ptr": "*fp32", "gw_ptr": "*fp32", "seed_ptr": "*i64", "ranks_ptr": "*i32"}
        types |= {"hidden_table": "*i64", "dz_table": "*i64", "tokens": "i32", "M": "i32", "N": "i32"}
        types |= {"inverse_temperature": "fp32", "threshold": "i64", "keep": "fp32"}
        for rank in (16, 48, 256):
            for kernel in (adapter_fusion_fwd_kernel, adapter_fusion_bwd_kernel):
                launch = config(rank)
                options = {"num_warps": launch.pop("num_warps"), "num_stages": launch.pop("num_stages"), "rank": rank}
                flags = {"BIASED": True, "SHIFT": True, "DROPOUT": True, "GRAD_WEIGHTS": True, "NEED_HIDDEN": True}
                constants = {name: v for name, v in (flags | launch).items() if name in kernel.arg_names}
                signature = {name: types[name] for name in kernel.arg_names if name not in constants}
                cases.append((kernel, signature, constants, options))
    return cases


OP.register("triton", _forward, _backward, _supports)
