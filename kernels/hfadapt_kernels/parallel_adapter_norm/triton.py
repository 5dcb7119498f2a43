"""parallel_adapter_norm through Triton: the host side."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
from torch import Tensor

from ..batch import TaskBatch
from ..calls import takes
from ..dropout import dropout_threshold
from ..triton.products import weight_products
from ..triton.rows import aligned, by_task, membership, pointer_table, precision, rank_alignment, rows_of
from .saved import NEED_DOWN, NEED_H, NEED_SCALE, NEED_UP, empty_grads, saved_shapes, stat_dtype
from .schema import Backward, Forward
from .triton_configs import config

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve the call; ``None`` when they can."""
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no kernel for {dtype}"


def _scale_mode(scale: list[Tensor], D: int) -> int:
    if not scale:
        return 0
    return 2 if any(s.numel() > 1 for s in scale) else 1


def _vectors(scale: list[Tensor], mode: int, width: int) -> list[Tensor]:
    """Learned scales as the kernel reads them: all numbers, or all vectors."""
    return [aligned(s.expand(width) if mode == 2 else s) for s in scale]


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, ...]:
    """See the schema."""
    import triton

    from .triton_kernels import adapter_norm_fwd_kernel

    z_shape, pre_shape, stats = saved_shapes(call.x, call.down, call.norm, call.save)
    x, h = call.x.contiguous(), call.h.contiguous()
    residual = None if call.residual is None else call.residual.contiguous()
    norm_weight, norm_bias, seed = call.norm_weight, call.norm_bias, call.seed
    out, z, pre = torch.empty_like(x), x.new_empty(z_shape), x.new_zeros(pre_shape)
    mean, rstd = (x.new_zeros(stats, dtype=stat_dtype(x)) for _ in range(2))
    rows, batch, tokens = rows_of(x, call.ids)
    ranks, width = [d.shape[0] for d in call.down], x.shape[-1]
    max_rank = max(ranks)
    hidden = x.new_empty(x.shape[:-1].numel(), max_rank)
    mode = _scale_mode(call.scale, width)
    # Kept in names so that they live until the launch.
    lists = (call.down, call.up, call.down_bias, call.up_bias, _vectors(call.scale, mode, width))
    weights = [[aligned(w) for w in ws] for ws in lists]
    tables = [pointer_table(ws, x.device) if ws else rows for ws in weights]
    launch = config("fwd", max_rank, x.element_size())
    adapter_norm_fwd_kernel[(batch, triton.cdiv(tokens, launch["BM"]))](
        x, x if residual is None else residual, h, out, z if z.numel() else out, pre if call.save else hidden, hidden,
        mean if stats else rows, rstd if stats else rows, *tables,
        by_task(call.scale_values or [1.0], torch.float32, x.device),
        by_task(ranks, torch.int32, x.device), rows, x if norm_weight is None else norm_weight,
        x if norm_bias is None else norm_bias, rows if seed is None else seed, tokens, width, h.shape[-1], max_rank,
        call.eps, call.norm_offset, dropout_threshold(call.dropout), 1.0 / (1.0 - call.dropout), ACT=call.activation,
        NORM=call.norm, HAS_RESIDUAL=residual is not None, HAS_DOWN_BIAS=bool(call.down_bias),
        HAS_UP_BIAS=bool(call.up_bias), SCALE=mode, HAS_WEIGHT=norm_weight is not None,
        HAS_BIAS=norm_bias is not None, DROPOUT=seed is not None, SAVE=call.save,
        PRECISION=precision(x.dtype), RANK_ALIGN=rank_alignment(ranks), **launch,
    )  # fmt: skip
    return out, z, pre, mean, rstd


@takes(Backward)
def backward(call: Backward) -> tuple[Tensor, Tensor, list[Tensor]]:
    """See the schema. Row kernel, then one product a weight; small sums over programs and tasks by torch."""
    import triton

    from .triton_kernels import adapter_norm_bwd_kernel

    norm, needs, norm_weight, seed = call.norm, call.needs, call.norm_weight, call.seed
    dz, dh, grads = empty_grads(call.grad, call.h, call.down, call.up, call.scale, norm, needs)
    grad, h = call.grad.contiguous(), call.h.contiguous()
    rows, batch, tokens = rows_of(grad, call.ids)
    ranks, width = [d.shape[0] for d in call.down], grad.shape[-1]
    max_rank = max(ranks)
    total = grad.shape[:-1].numel()
    flow = dz if norm else torch.empty_like(grad)
    dpre, hidden = grad.new_empty(total, max_rank), grad.new_empty(total, max_rank)
    mode = _scale_mode(call.scale, width)
    weights = [[aligned(w) for w in ws] for ws in (call.down, call.up, _vectors(call.scale, mode, width))]
    tables = [pointer_table(ws, grad.device) if ws else rows for ws in weights]
    launch = config("bwd", max_rank, grad.element_size())
    programs = triton.cdiv(tokens, launch["BM"])
    sums = torch.zeros(batch, programs, 3, width, dtype=torch.float32, device=grad.device)
    adapter_norm_bwd_kernel[(batch, programs)](
        grad, call.z if norm else grad, call.pre, call.mean if norm else rows, call.rstd if norm else rows, flow,
        dh if needs & NEED_H else flow, dpre, hidden, sums, *tables,
        by_task(call.scale_values or [1.0], torch.float32, grad.device),
        by_task(ranks, torch.int32, grad.device), rows,
        grad if norm_weight is None else norm_weight, rows if seed is None else seed, tokens, width, h.shape[-1],
        max_rank, call.norm_offset, dropout_threshold(call.dropout), 1.0 / (1.0 - call.dropout), ACT=call.activation,
        NORM=norm, SCALE=mode, HAS_WEIGHT=norm_weight is not None, DROPOUT=seed is not None,
        NEED_H=bool(needs & NEED_H), PRECISION=precision(grad.dtype), RANK_ALIGN=rank_alignment(ranks), **launch,
    )  # fmt: skip
    by_row = sums.sum(1)
    if norm:
        for target, kind in ((grads[-2], 0), (grads[-1], 1)):
            if target.numel():
                target.copy_(by_row[:, kind].sum(0))
    _task_grads(call._replace(h=h, ids=rows), grads, flow, dpre, hidden, tokens, by_row[:, 2])
    return dz, dh, grads


def _task_grads(
    call: Backward, grads: list[Tensor], flow: Tensor, dpre: Tensor, hidden: Tensor, tokens: int, dz_sums: Tensor
) -> None:
    """Gradients of every task's weights from the row kernel's results."""
    assert call.ids is not None
    down, up, up_bias, scale, needs, tasks = call.down, call.up, call.up_bias, call.scale, call.needs, len(call.down)
    order, starts = TaskBatch(call.ids, tasks).order()
    member = membership(call.ids, tasks)
    task_dz = member @ dz_sums
    ddown: list[Tensor] = []
    dup: list[Tensor] = []
    if needs & NEED_DOWN:
        ddown = weight_products(dpre, call.h, [d.shape for d in down], order, starts, tokens)
    if needs & (NEED_UP | NEED_SCALE):
        dup = weight_products(flow, hidden, [u.shape for u in up], order, starts, tokens)
    spread = member.repeat_interleave(tokens, 1)
    live = torch.arange(dpre.shape[1], device=dpre.device)
    for t in range(tasks):
        wanted = grads[5 * t : 5 * t + 5]
        s = scale[t].float() if scale else call.scale_values[t]
        if wanted[0].numel():
            wanted[0].copy_(ddown[t])
        if wanted[1].numel():
            wanted[1].copy_(dup[t] * (s[:, None] if isinstance(s, Tensor) and s.numel() > 1 else s))
        if wanted[2].numel():
            rank = down[t].shape[0]
            # Rows of other tasks, and columns beyond a rank, were never written: select before adding.
            mask = (spread[t] > 0)[:, None] & (live < rank)[None, :]
            wanted[2].copy_(torch.where(mask, dpre.float(), 0.0).sum(0)[:rank])
        if wanted[3].numel():
            wanted[3].copy_(task_dz[t] * s)
        if wanted[4].numel():
            ds = (dup[t] * up[t].float()).sum(1)
            if up_bias:
                ds = ds + up_bias[t].float() * task_dz[t]
            wanted[4].copy_(ds if wanted[4].numel() > 1 else ds.sum().reshape(1))
