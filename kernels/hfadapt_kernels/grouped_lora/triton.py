"""grouped_lora and lora_linear through Triton: the host side."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import TaskBatch
from ..calls import takes
from ..dropout import dropout_threshold
from ..triton.products import weight_products
from ..triton.rows import aligned, by_task, membership, pointer_table, precision, rank_alignment, rows_of
from .reference import drop_elements
from .schema import Backward, Forward, Gradients, LinearBackward, LinearForward, empty_gradients
from .triton_configs import config

__all__ = ["backward", "forward", "linear_backward", "linear_forward", "supports"]


def supports(*, device: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve the call; ``None`` when they can."""
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no kernel for {dtype}"


def _factors(learned: Sequence[Tensor], scale: Sequence[float], device: torch.device) -> Tensor:
    factors = by_task(scale, torch.float32, device)
    return factors * torch.cat([t.reshape(1).float() for t in learned]) if learned else factors


def _launch(
    x: Tensor, base: Tensor | None, down: list[Tensor], up: list[Tensor], ranks: list[int], outputs: int,
    factors: Tensor, ids: Tensor | None, dropout: float, seed: Tensor | None, backward: bool, need_out: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``out`` and the rank rows of one sweep over the tokens; zeros in the rank rows of tokens without a task."""
    import triton

    from .triton_kernels import lora_rows_kernel

    x = x.contiguous()
    base = None if base is None else base.contiguous()
    out = x.new_empty(*x.shape[:-1], outputs) if need_out else x
    low = x.new_zeros(x.shape[:-1].numel(), max(ranks))
    ids, batch, tokens = rows_of(x, ids)
    # Kept in names so that they live until the launch.
    down, up = [aligned(w) for w in down], [aligned(w) for w in up]
    launch = config(max(ranks), x.element_size())
    if x.numel() > 0 and outputs > 0:
        lora_rows_kernel[(batch, triton.cdiv(tokens, launch["BM"]))](
            x, x if base is None else base, out, low, pointer_table(down, x.device), pointer_table(up, x.device),
            factors, by_task(ranks, torch.int32, x.device), ids,
            ids if seed is None else seed, tokens, x.shape[-1], outputs, max(ranks), dropout_threshold(dropout),
            1.0 / (1.0 - dropout), HAS_BASE=base is not None, BACKWARD=backward, DROPOUT=seed is not None,
            NEED_OUT=need_out, PRECISION=precision(x.dtype), RANK_ALIGN=rank_alignment(ranks), **launch,
        )  # fmt: skip
    return out, low


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, Tensor]:
    """See the schema."""
    x, ranks = call.x, [w.shape[0] for w in call.a]
    factors = _factors(call.learned, call.scale, x.device)
    out, low = _launch(
        x, call.y, call.a, call.b, ranks, call.b[0].shape[0], factors, call.ids, call.dropout, call.seed, False, True
    )
    return out, low if call.save else x.new_empty(0)


@takes(LinearForward)
def linear_forward(call: LinearForward) -> tuple[Tensor, Tensor]:
    """See the schema."""
    return forward(*call.update(F.linear(call.x, call.weight, call.bias)))


@takes(Backward)
def backward(call: Backward) -> Gradients:
    """See the schema."""
    return _gradients(call, None)


@takes(LinearBackward)
def linear_backward(call: LinearBackward) -> Gradients:
    """See the schema."""
    return _gradients(call.update(), call.weight)


def _gradients(call: Backward, weight: Tensor | None) -> Gradients:
    grad, x, low, a, b, learned, scale, ids, dropout, seed, needs = call
    dx, da, db, dlearned = empty_gradients(x, a, b, learned, needs)
    grad = grad.contiguous()
    factors, ranks = _factors(learned, scale, x.device), [w.shape[0] for w in a]
    base = torch.matmul(grad, weight) if weight is not None and needs[0] else None
    found, g = _launch(grad, base, b, a, ranks, x.shape[-1], factors, ids, dropout, seed, True, needs[0])
    dx = found.view(x.shape) if needs[0] else dx
    rows, batch, tokens = rows_of(x, ids)
    order, starts = TaskBatch(rows, len(a)).order()
    if needs[1]:
        kept = drop_elements(x, dropout, seed).contiguous()
        products = weight_products(g, kept, [w.shape for w in a], order, starts, tokens)
        da = [(p * s).to(x.dtype) for p, s in zip(products, factors, strict=True)]
    if needs[2]:
        products = weight_products(grad, low, [w.shape for w in b], order, starts, tokens)
        db = [(p * s).to(x.dtype) for p, s in zip(products, factors, strict=True)]
    if needs[3]:
        sums = membership(rows, len(a)) @ (g.float() * low.float()).sum(1).view(batch, tokens).sum(1)
        dlearned = [(v * fixed).reshape(t.shape).to(t.dtype) for v, fixed, t in zip(sums, scale, learned, strict=True)]
    return dx, da, db, dlearned
