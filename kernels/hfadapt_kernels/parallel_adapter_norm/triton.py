"""parallel_adapter_norm through Triton: the host side."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calls import takes
from ..dropout import dropout_threshold
from ..triton.order import task_order
from ..triton.products import Learned, Product, task_products
from ..triton.rows import precision, rank_alignment, rows_of
from ..triton.shared import fitting
from ..triton.tables import aligned_all, bits, buffer, distances, task_table
from .saved import (
    NEED_DOWN,
    NEED_DOWN_BIAS,
    NEED_H,
    NEED_NORM_BIAS,
    NEED_NORM_WEIGHT,
    NEED_SCALE,
    NEED_UP,
    NEED_UP_BIAS,
    saved_shapes,
    stat_dtype,
)  # fmt: skip
from .schema import OP, Backward, Forward
from .triton_configs import config

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve the call; ``None`` when they can."""
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no kernel for {dtype}"


class _Weights:
    """The weights of all tasks as the kernels take them; to be kept until the launch, for copies may be among them."""

    def __init__(self, call: Forward | Backward) -> None:
        self.ranks = [down.shape[0] for down in call.down]
        self.max_rank, self.align = max(self.ranks), rank_alignment(self.ranks)
        self.numbers = call.scale_values or [1.0] * len(self.ranks)
        # Learned scales are read as all numbers, or as all vectors.
        self.mode = 0 if not call.scale else 2 if any(s.numel() > 1 for s in call.scale) else 1
        width = call.up[0].shape[0]
        scale = [s.expand(width) for s in call.scale] if self.mode == 2 else call.scale
        biases = call.down_bias if isinstance(call, Forward) else []
        lists = (call.down, call.up, biases, call.up_bias, scale)
        self.down, self.up, self.down_bias, self.up_bias, self.scale = (aligned_all(ws) if ws else [] for ws in lists)

    def table(self, device: torch.device) -> Tensor:
        lists = (self.down, self.up, self.down_bias, self.up_bias, self.scale)
        none = (0,) * len(self.ranks)
        return task_table(device, self.ranks, bits(self.numbers), *(distances(ws) or none for ws in lists))


def _first(tensors: Sequence[Tensor], instead: Tensor) -> Tensor:
    return tensors[0] if tensors else instead


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, ...]:
    """See the schema. One launch. Nothing is zeroed: what no kernel writes, none reads."""
    import triton

    from .triton_kernels import adapter_norm_fwd_kernel

    z_shape, pre_shape, stats = saved_shapes(call.x, call.down, call.norm, call.save)
    x, h = call.x.contiguous(), call.h.contiguous()
    residual = None if call.residual is None else call.residual.contiguous()
    norm_weight, norm_bias, seed = call.norm_weight, call.norm_bias, call.seed
    out, z, pre = torch.empty_like(x), x.new_empty(z_shape), x.new_empty(pre_shape)
    mean, rstd = (x.new_empty(stats, dtype=stat_dtype(x)) for _ in range(2))
    rows, batch, tokens = rows_of(x, call.ids)
    weights, width = _Weights(call), x.shape[-1]
    max_rank = weights.max_rank
    hidden = x.new_empty(x.shape[:-1].numel(), max_rank)
    launches = [config("fwd", max_rank, x.element_size())]
    launch = fitting("adapter_norm_fwd_kernel", x.device, launches, x.dtype)
    adapter_norm_fwd_kernel[(batch, triton.cdiv(tokens, launch["BM"]))](
        x, x if residual is None else residual, h, out, z if z.numel() else out, pre if call.save else hidden, hidden,
        mean if stats else rows, rstd if stats else rows, weights.down[0], weights.up[0], _first(weights.down_bias, x),
        _first(weights.up_bias, x), _first(weights.scale, x), weights.table(x.device), rows,
        x if norm_weight is None else norm_weight.contiguous(), x if norm_bias is None else norm_bias.contiguous(),
        rows if seed is None else seed, len(weights.ranks), tokens, width, h.shape[-1], max_rank, call.eps,
        call.norm_offset, dropout_threshold(call.dropout), 1.0 / (1.0 - call.dropout), ACT=call.activation,
        NORM=call.norm, HAS_RESIDUAL=residual is not None, HAS_DOWN_BIAS=bool(call.down_bias),
        HAS_UP_BIAS=bool(call.up_bias), SCALE=weights.mode, HAS_WEIGHT=norm_weight is not None,
        HAS_BIAS=norm_bias is not None, DROPOUT=seed is not None, SAVE=call.save,
        PRECISION=precision(x.dtype), RANK_ALIGN=weights.align, **launch,
    )  # fmt: skip
    return out, z, pre, mean, rstd


class _Gradients:
    """What the backward writes: each kind of weight in one buffer, so that tables of where they lie stay the same."""

    def __init__(self, call: Backward) -> None:
        grad, needs = call.grad, call.needs
        width, ranks = grad.shape[-1], [down.shape[0] for down in call.down]

        def like(need: int, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
            return buffer(grad, shapes) if needs & need else []

        self.down = like(NEED_DOWN, [down.shape for down in call.down])
        self.up = like(NEED_UP, [up.shape for up in call.up])
        self.down_bias = like(NEED_DOWN_BIAS, [(rank,) for rank in ranks])
        self.up_bias = like(NEED_UP_BIAS, [(width,)] * len(ranks))
        self.scale = like(NEED_SCALE, [scale.shape for scale in call.scale]) if call.scale else []
        self.norm_weight, self.norm_bias = (
            grad.new_empty(width if needs & need else 0) for need in (NEED_NORM_WEIGHT, NEED_NORM_BIAS)
        )
        self.nothing = grad.new_empty(0)

    def in_order(self, tasks: int) -> list[Tensor]:
        """As the schema wants them; an entry that is not needed is empty."""
        kinds = (self.down, self.up, self.down_bias, self.up_bias, self.scale)
        each = [kind[task] if kind else self.nothing.new_empty(0) for task in range(tasks) for kind in kinds]
        return [*each, self.norm_weight, self.norm_bias]


@takes(Backward)
def backward(call: Backward) -> tuple[Tensor, Tensor, list[Tensor]]:
    """See the schema. Three launches: rows, the weights' products, and the sums of what those left in parts."""
    import triton

    from .triton_kernels import adapter_norm_bwd_kernel

    norm, needs, norm_weight, seed = call.norm, call.needs, call.norm_weight, call.seed
    grad, h = call.grad.contiguous(), call.h.contiguous()
    grads, weights = _Gradients(call), _Weights(call)
    rows, batch, tokens = rows_of(grad, call.ids)
    width, max_rank, tasks = grad.shape[-1], weights.max_rank, len(weights.ranks)
    total = grad.shape[:-1].numel()
    flow = torch.empty_like(grad)
    dh = torch.empty_like(h) if needs & NEED_H else grads.nothing
    dpre, hidden = grad.new_empty(total, max_rank), grad.new_empty(total, max_rank)
    launches = [config("bwd", max_rank, grad.element_size())]
    launch = fitting("adapter_norm_bwd_kernel", grad.device, launches, grad.dtype)
    programs = triton.cdiv(tokens, launch["BM"])
    sums = grad.new_empty((batch * programs, 2, width) if norm else 0, dtype=torch.float32)
    adapter_norm_bwd_kernel[(batch, programs)](
        grad, call.z if norm else grad, call.pre, call.mean if norm else rows, call.rstd if norm else rows, flow,
        dh if needs & NEED_H else flow, dpre, hidden, sums if norm else flow, weights.down[0], weights.up[0],
        _first(weights.scale, grad), weights.table(grad.device), rows,
        grad if norm_weight is None else norm_weight.contiguous(), rows if seed is None else seed, tasks, tokens, width,
        h.shape[-1], max_rank, call.norm_offset, dropout_threshold(call.dropout), 1.0 / (1.0 - call.dropout),
        ACT=call.activation, NORM=norm, SCALE=weights.mode, HAS_WEIGHT=norm_weight is not None,
        DROPOUT=seed is not None, NEED_H=bool(needs & NEED_H), PRECISION=precision(grad.dtype),
        RANK_ALIGN=weights.align, **launch,
    )  # fmt: skip
    learned = None
    blocks = [0] * tasks
    if weights.mode:
        blocks = Learned.blocks(weights.ranks, grad.dtype, grad.device)
        parts = grad.new_empty(tasks, max(blocks), width, dtype=torch.float32) if grads.scale else None
        learned = Learned(weights.scale, weights.up, weights.up_bias, parts)
    inner = h.shape[-1]
    task_products(
        Product(dpre, h, [(rank, inner) for rank in weights.ranks], grads.down, grads.down_bias),
        Product(flow, hidden, [(width, rank) for rank in weights.ranks], grads.up, grads.up_bias, weights.mode),
        task_order(grad.device, call.ids, tasks, eager=OP.running is not None), tokens, weights.numbers, learned,
    )  # fmt: skip
    _add_up(grads, sums, None if learned is None else learned.parts, blocks)
    return flow if norm else grads.nothing.new_empty(0), dh, grads.in_order(tasks)


def _add_up(grads: _Gradients, sums: Tensor, parts: Tensor | None, blocks: list[int]) -> None:
    """The gradients of the norm and of the learned scales from what programs and blocks left of them."""
    import triton

    from .triton_configs import SUMS
    from .triton_kernels import adapter_norm_sums_kernel

    weight, bias, scale = grads.norm_weight, grads.norm_bias, grads.scale
    if not (weight.numel() or bias.numel() or scale):
        return
    width, tasks = (sums if parts is None else parts).shape[-1], len(blocks)
    table = task_table(sums.device, blocks, [s.numel() for s in scale] or blocks, distances(scale) or blocks)
    launch = fitting("adapter_norm_sums_kernel", sums.device, [SUMS], weight.dtype)
    adapter_norm_sums_kernel[(2 + len(scale), triton.cdiv(width, launch["BD"]))](
        sums if sums.numel() else table, table if parts is None else parts, weight if weight.numel() else table,
        bias if bias.numel() else table, _first(scale, table), table, tasks, sums.shape[0],
        0 if parts is None else parts.shape[1], width, WEIGHT=weight.numel() > 0, BIAS=bias.numel() > 0, **launch,
    )  # fmt: skip
