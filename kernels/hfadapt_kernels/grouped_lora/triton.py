"""grouped_lora and lora_linear through Triton: the host side."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import FusedOp
from ..calls import takes
from ..dropout import dropout_threshold
from ..triton.order import task_order
from ..triton.products import Learned, Product, task_products
from ..triton.rows import precision, rank_alignment, rows_of
from ..triton.shared import fitting
from ..triton.tables import aligned_all, bits, buffer, distances, task_table
from .schema import LINEAR, OP, Backward, Forward, Gradients, LinearBackward, LinearForward
from .triton_configs import SCALES, config

__all__ = ["backward", "forward", "linear_backward", "linear_forward", "supports"]


def supports(*, device: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve the call; ``None`` when they can."""
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no kernel for {dtype}"


class _Rows:
    """One sweep over the tokens of a call: ``low = x down``, ``out = base + s low up``, and what the sweep needs.

    In the backward down is B and up is A. Rank rows of tokens without a task, and columns beyond a task's rank, are
    written by nobody and read by nobody.
    """

    def __init__(self, call: Forward | Backward, x: Tensor, *, backward: bool) -> None:
        self.x, self.call, self.backward = x.contiguous(), call, backward
        self.ranks = [a.shape[0] for a in call.a]
        self.a, self.b = aligned_all(call.a), aligned_all(call.b)
        # Read as one type, whatever each of them is.
        same = {t.dtype for t in call.learned} <= {call.learned[0].dtype} if call.learned else True
        self.learned = aligned_all([t.view(1) if same else t.view(1).float() for t in call.learned])
        self.ids, self.batch, self.tokens = rows_of(x, call.ids)

    def sweep(self, base: Tensor | None, outputs: int, *, need_out: bool, other: Tensor | None = None) -> Any:
        """``out`` and ``low``, and with ``other`` (the forward's rank rows) the parts of a learned scale's gradient."""
        import triton

        from .triton_kernels import lora_rows_kernel

        call, x, max_rank = self.call, self.x, max(self.ranks)
        base = None if base is None else base.contiguous()
        out = x.new_empty(*x.shape[:-1], outputs) if need_out else x
        low = x.new_empty(x.shape[:-1].numel(), max_rank)
        launch = fitting("lora_rows_kernel", x.device, [config(max_rank, x.element_size())], x.dtype)
        programs = triton.cdiv(self.tokens, launch["BM"])
        parts = None if other is None else x.new_empty(self.batch, programs, dtype=torch.float32)
        down, up = (self.b, self.a) if self.backward else (self.a, self.b)
        none, seed = (0,) * len(self.ranks), call.seed
        table = task_table(
            x.device, self.ranks, bits(call.scale), distances(down), distances(up), distances(self.learned) or none
        )
        if x.numel() > 0 and outputs > 0:
            lora_rows_kernel[(self.batch, programs)](
                x, x if base is None else base, out, low, x if other is None else other, x if parts is None else parts,
                down[0], up[0], self.learned[0] if self.learned else x, table, self.ids,
                self.ids if seed is None else seed, len(self.ranks), self.tokens, x.shape[-1], outputs, max_rank,
                dropout_threshold(call.dropout), 1.0 / (1.0 - call.dropout), HAS_BASE=base is not None,
                BACKWARD=self.backward, DROPOUT=seed is not None, NEED_OUT=need_out,
                LEARNED=bool(self.learned), PARTS=parts is not None, PRECISION=precision(x.dtype),
                RANK_ALIGN=rank_alignment(self.ranks), **launch,
            )  # fmt: skip
        elif parts is not None:
            parts.zero_()
        return out, low, parts


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, Tensor]:
    """See the schema. One launch."""
    out, low, _ = _Rows(call, call.x, backward=False).sweep(call.y, call.b[0].shape[0], need_out=True)
    return out, low if call.save else call.x.new_empty(0)


@takes(LinearForward)
def linear_forward(call: LinearForward) -> tuple[Tensor, Tensor]:
    """See the schema. The product of the base, and one launch that adds the update to it."""
    return forward(*call.update(F.linear(call.x, call.weight, call.bias)))


@takes(Backward)
def backward(call: Backward) -> Gradients:
    """See the schema."""
    return _gradients(call, None, OP)


@takes(LinearBackward)
def linear_backward(call: LinearBackward) -> Gradients:
    """See the schema."""
    return _gradients(call.update(), call.weight, LINEAR)


def _gradients(call: Backward, weight: Tensor | None, op: FusedOp) -> Gradients:
    """Three launches: rows, the products of A and B, and the sums of learned scales where there are any."""
    x = call.x
    need_x, need_a, need_b, need_learned = call.needs
    grad = call.grad.contiguous()
    base = torch.matmul(grad, weight) if weight is not None and need_x else None
    rows = _Rows(call, grad, backward=True)
    other = call.low if need_learned else None
    dx, g, parts = rows.sweep(base, x.shape[-1], need_out=need_x, other=other)
    da, db = (
        buffer(x, [t.shape for t in tensors]) if need else [x.new_empty(0) for _ in tensors]
        for tensors, need in ((call.a, need_a), (call.b, need_b))
    )
    order = task_order(x.device, call.ids, len(call.a), eager=op.running is not None)
    if (need_a or need_b) and x.numel() == 0:
        for t in (*da, *db):
            t.zero_()
    elif need_a or need_b:
        mode = 1 if rows.learned else 0
        task_products(
            Product(g, x.contiguous(), [w.shape for w in call.a], da if need_a else (), scale=mode),
            Product(grad, call.low, [w.shape for w in call.b], db if need_b else (), scale=mode),
            order, rows.tokens, call.scale, Learned(rows.learned) if rows.learned else None, call.dropout, call.seed,
        )  # fmt: skip
    dlearned = [t.new_empty(0) for t in call.learned] if parts is None else _scale_gradients(call, parts, rows, order)
    return dx if need_x else x.new_empty(0), da, db, dlearned


def _scale_gradients(call: Backward, parts: Tensor, rows: _Rows, order: Any) -> list[Tensor]:
    from .triton_kernels import lora_scales_kernel

    grads = buffer(parts, [(1,)] * len(call.learned), rows.learned[0].dtype)
    table = task_table(parts.device, bits(call.scale), distances(grads))
    launch = fitting("lora_scales_kernel", parts.device, [SCALES], grads[0].dtype)
    lora_scales_kernel[(len(grads),)](parts, grads[0], table, *order, len(grads), parts.shape[1], **launch)
    grads = [g.view(t.shape) for g, t in zip(grads, call.learned, strict=True)]
    # `to` costs a call also where it changes nothing.
    return [g if g.dtype == t.dtype else g.to(t.dtype) for g, t in zip(grads, call.learned, strict=True)]
