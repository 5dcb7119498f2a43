"""The core of adapter_fusion through Triton: the host side."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
from torch import Tensor

from ..dropout import dropout_threshold
from ..triton_rows import aligned, by_task, pointer_table
from .schema import OP, empty_gradients, empty_results
from .triton_configs import config


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

    from .triton_kernels import adapter_fusion_fwd_kernel

    products, hidden = products.contiguous(), [aligned(z) for z in hidden]
    weighted, weights = empty_results(products, len(hidden))
    table = pointer_table(hidden, products.device)
    ranks = by_task([z.shape[1] for z in hidden], torch.int32, products.device)
    (tokens, columns), launch = products.shape, config("fwd", max(z.shape[1] for z in hidden))
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

    from .triton_kernels import adapter_fusion_bwd_kernel

    products, hidden = products.contiguous(), [aligned(z) for z in hidden]
    grads = empty_gradients(products, hidden, shift, need_hidden)
    tables = [pointer_table(zs, products.device) for zs in (hidden, grads[1])]
    ranks = by_task([z.shape[1] for z in hidden], torch.int32, products.device)
    (tokens, columns), launch = products.shape, config("bwd", max(z.shape[1] for z in hidden))
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


OP.register("triton", _forward, _backward, _supports)
