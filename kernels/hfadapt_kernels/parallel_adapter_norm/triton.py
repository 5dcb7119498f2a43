"""parallel_adapter_norm through Triton: configurations, host side, and the cases for ahead-of-time compilation."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dropout import dropout_threshold
from .saved import NEED_DOWN, NEED_H, NEED_SCALE, NEED_UP, empty_grads, saved_shapes, stat_dtype

__all__ = ["aot_cases", "backward", "config", "forward", "supports", "weight_products"]

# Bytes an element -> (largest rank, BM tokens, BD columns, BR ranks, warps, stages), chosen so that nothing spills on
# sm_80, sm_90, sm_100 and gfx942 and shared memory fits the smallest; `hfadapt bench triton-static` prints the proof.
_CONFIGS = {
    2: ((16, 16, 128, 16, 4, 2), (32, 32, 64, 32, 4, 2), (1 << 30, 32, 64, 64, 4, 2)),
    # float32 products without TF32 are sums of single products: they need registers for both operands.
    4: ((16, 16, 64, 16, 4, 2), (1 << 30, 16, 64, 32, 4, 2)),
}
_WEIGHT_CONFIGS = {2: {"BI": 64, "BJ": 64, "BK": 32}, 4: {"BI": 32, "BJ": 32, "BK": 16}}


def config(max_rank: int, element_size: int) -> dict[str, int]:
    """Launch configuration for bottlenecks up to ``max_rank`` and elements of 2 or 4 bytes."""
    _, bm, bd, br, warps, stages = next(row for row in _CONFIGS[element_size] if max_rank <= row[0])
    return {"BM": bm, "BD": bd, "BR": br, "num_warps": warps, "num_stages": stages}


def supports(*, device: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve the call; ``None`` when they can."""
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no kernel for {dtype}"


def _by_task(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def _scale_mode(scale: list[Tensor], D: int) -> int:
    if not scale:
        return 0
    return 2 if any(s.numel() > 1 for s in scale) else 1


def _vectors(scale: list[Tensor], mode: int, width: int) -> list[Tensor]:
    """Learned scales as the kernel reads them: all numbers, or all vectors."""
    return [(s.expand(width) if mode == 2 else s).contiguous() for s in scale]


def _shape(x: Tensor, ids: Tensor | None) -> tuple[Tensor, int, int]:
    """Ids, number of batch rows and tokens a row; one task for all is one long row."""
    tokens = x.shape[:-1].numel()
    if ids is None:
        return torch.zeros(1, dtype=torch.int64, device=x.device), 1, tokens
    return ids, x.shape[0], tokens // max(x.shape[0], 1)


def forward(
    x, residual, h, down, up, down_bias, up_bias, scale, scale_values, norm_weight, norm_bias, ids, seed, activation,
    norm, eps, norm_offset, dropout, save,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """See the schema."""
    import triton

    from ..triton_common import pointer_table, precision
    from .triton_kernels import adapter_norm_fwd_kernel

    z_shape, pre_shape, stats = saved_shapes(x, down, norm, save)
    x, h = x.contiguous(), h.contiguous()
    residual = None if residual is None else residual.contiguous()
    out, z, pre = torch.empty_like(x), x.new_empty(z_shape), x.new_zeros(pre_shape)
    mean, rstd = (x.new_zeros(stats, dtype=stat_dtype(x)) for _ in range(2))
    rows, batch, tokens = _shape(x, ids)
    max_rank, width = max(d.shape[0] for d in down), x.shape[-1]
    hidden = x.new_empty(x.shape[:-1].numel(), max_rank)
    mode = _scale_mode(scale, width)
    # Kept in names so that they live until the launch.
    weights = [[w.contiguous() for w in ws] for ws in (down, up, down_bias, up_bias, _vectors(scale, mode, width))]
    tables = [pointer_table(ws, x.device) if ws else rows for ws in weights]
    launch = config(max_rank, x.element_size())
    adapter_norm_fwd_kernel[(batch, triton.cdiv(tokens, launch["BM"]))](
        x, x if residual is None else residual, h, out, z if z.numel() else out, pre if save else hidden, hidden,
        mean if stats else rows, rstd if stats else rows, *tables,
        _by_task(scale_values or [1.0], torch.float32, x.device),
        _by_task([d.shape[0] for d in down], torch.int32, x.device), rows, x if norm_weight is None else norm_weight,
        x if norm_bias is None else norm_bias, rows if seed is None else seed, tokens, width, h.shape[-1], max_rank,
        eps, norm_offset, dropout_threshold(dropout), 1.0 / (1.0 - dropout), ACT=activation, NORM=norm,
        HAS_RESIDUAL=residual is not None, HAS_DOWN_BIAS=bool(down_bias), HAS_UP_BIAS=bool(up_bias), SCALE=mode,
        HAS_WEIGHT=norm_weight is not None, HAS_BIAS=norm_bias is not None, DROPOUT=seed is not None, SAVE=save,
        PRECISION=precision(x.dtype), **launch,
    )  # fmt: skip
    return out, z, pre, mean, rstd


def backward(
    grad, z, pre, mean, rstd, h, down, up, up_bias, scale, scale_values, norm_weight, ids, seed, activation, norm,
    norm_offset, dropout, needs,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """See the schema. Row kernel, then one product a weight; small sums over programs and tasks by torch."""
    import triton

    from ..triton_common import pointer_table, precision
    from .triton_kernels import adapter_norm_bwd_kernel

    dz, dh, grads = empty_grads(grad, h, down, up, scale, norm, needs)
    grad, h = grad.contiguous(), h.contiguous()
    rows, batch, tokens = _shape(grad, ids)
    max_rank, width = max(d.shape[0] for d in down), grad.shape[-1]
    total = grad.shape[:-1].numel()
    flow = dz if norm else torch.empty_like(grad)
    dpre, hidden = grad.new_empty(total, max_rank), grad.new_empty(total, max_rank)
    mode = _scale_mode(scale, width)
    weights = [[w.contiguous() for w in ws] for ws in (down, up, _vectors(scale, mode, width))]
    tables = [pointer_table(ws, grad.device) if ws else rows for ws in weights]
    launch = config(max_rank, grad.element_size())
    programs = triton.cdiv(tokens, launch["BM"])
    sums = torch.zeros(batch, programs, 3, width, dtype=torch.float32, device=grad.device)
    adapter_norm_bwd_kernel[(batch, programs)](
        grad, z if norm else grad, pre, mean if norm else rows, rstd if norm else rows, flow,
        dh if needs & NEED_H else flow, dpre, hidden, sums, *tables,
        _by_task(scale_values or [1.0], torch.float32, grad.device),
        _by_task([d.shape[0] for d in down], torch.int32, grad.device), rows,
        grad if norm_weight is None else norm_weight, rows if seed is None else seed, tokens, width, h.shape[-1],
        max_rank, norm_offset, dropout_threshold(dropout), 1.0 / (1.0 - dropout), ACT=activation, NORM=norm, SCALE=mode,
        HAS_WEIGHT=norm_weight is not None, DROPOUT=seed is not None, NEED_H=bool(needs & NEED_H),
        PRECISION=precision(grad.dtype), **launch,
    )  # fmt: skip
    by_row = sums.sum(1)
    if norm:
        for target, kind in ((grads[-2], 0), (grads[-1], 1)):
            if target.numel():
                target.copy_(by_row[:, kind].sum(0))
    _task_grads(grads, needs, flow, h, dpre, hidden, down, up, up_bias, scale, scale_values, rows, tokens, by_row[:, 2])
    return dz, dh, grads


def _task_grads(
    grads, needs, flow, h, dpre, hidden, down, up, up_bias, scale, scale_values, ids, tokens, dz_sums,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Gradients of every task's weights from the row kernel's results."""
    from ..batch import TaskBatch

    tasks = len(down)
    order, starts = TaskBatch(ids, tasks).order()
    # A product with a 0/1 matrix adds the rows of each task in a fixed order, without atomics.
    member = (ids[None, :] == torch.arange(tasks, device=ids.device)[:, None]).float()
    task_dz = member @ dz_sums
    ddown: list[Tensor] = []
    dup: list[Tensor] = []
    if needs & NEED_DOWN:
        ddown = weight_products(dpre, h, [d.shape for d in down], order, starts, tokens)
    if needs & (NEED_UP | NEED_SCALE):
        dup = weight_products(flow, hidden, [u.shape for u in up], order, starts, tokens)
    spread = member.repeat_interleave(tokens, 1)
    live = torch.arange(dpre.shape[1], device=dpre.device)
    for t in range(tasks):
        wanted = grads[5 * t : 5 * t + 5]
        s = scale[t].float() if scale else scale_values[t]
        if wanted[0].numel():
            wanted[0].copy_(ddown[t])
        if wanted[1].numel():
            wanted[1].copy_(dup[t] * (s[:, None] if scale and s.numel() > 1 else s))
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


def weight_products(
    a: Tensor, b: Tensor, shapes: list[torch.Size], order: Tensor, starts: Tensor, tokens: int
) -> list[Tensor]:
    """``a^T b`` over the tokens of each task, float32, of the given shapes; rows in the order of `TaskBatch.order`."""
    import triton

    from ..triton_common import pointer_table, precision
    from .triton_kernels import weight_grad_kernel

    out = [torch.empty(shape, dtype=torch.float32, device=a.device) for shape in shapes]
    launch = _WEIGHT_CONFIGS[a.element_size()]
    rows, cols = (_by_task([shape[i] for shape in shapes], torch.int32, a.device) for i in (0, 1))
    blocks = [triton.cdiv(max(s[i] for s in shapes), launch[name]) for i, name in ((0, "BI"), (1, "BJ"))]
    weight_grad_kernel[(len(shapes), *blocks)](
        a, b, pointer_table(out, a.device), order, starts, rows, cols, tokens, a.shape[-1], b.shape[-1],
        PRECISION=precision(a.dtype), **launch, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out


def aot_cases() -> list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(kernel, signature, constexprs, options) of every committed configuration, for the resource table."""
    from .triton_kernels import adapter_norm_bwd_kernel, adapter_norm_fwd_kernel, weight_grad_kernel

    cases: list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    tables = "down_table up_table down_bias_table up_bias_table scale_table ids_ptr seed_ptr"
    common = {name: "*i64" for name in tables.split()} | {"ranks_ptr": "*i32", "scales_ptr": "*fp32"}
    common |= {name: "i32" for name in ("T", "D", "DH", "max_rank")} | {"threshold": "i64"}
    common |= {name: "fp32" for name in ("eps", "norm_offset", "keep_scale")}
    for dtype in ("bf16", "fp32"):
        pointers = "x residual h out z pre act dout dz dh dpre norm_weight norm_bias"
        types = common | {f"{name}_ptr": f"*{dtype}" for name in pointers.split()}
        types |= {f"{name}_ptr": "*fp32" for name in ("mean", "rstd", "sums")}
        for rank in (16, 32, 64):
            launch = config(rank, 2 if dtype == "bf16" else 4)
            options = {"num_warps": launch.pop("num_warps"), "num_stages": launch.pop("num_stages"), "rank": rank}
            flags = {"ACT": 2, "NORM": 1, "SCALE": 0, "HAS_WEIGHT": True, "DROPOUT": True, "PRECISION": "ieee"}
            ahead = flags | {"HAS_RESIDUAL": True, "HAS_DOWN_BIAS": True, "HAS_UP_BIAS": True, "HAS_BIAS": True}
            ahead |= {"SAVE": True}
            for kernel, constants in (
                (adapter_norm_fwd_kernel, ahead | launch),
                (adapter_norm_bwd_kernel, flags | {"NEED_H": True} | launch),
            ):
                signature = {name: types[name] for name in kernel.arg_names if name not in constants}
                cases.append((kernel, signature, constants, dict(options)))
        weight = {"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "out_table": "*i64", "order_ptr": "*i64"}
        weight |= {"starts_ptr": "*i64", "rows_ptr": "*i32", "cols_ptr": "*i32", "T": "i32", "lda": "i32", "ldb": "i32"}
        cases.append(
            (
                weight_grad_kernel,
                weight,
                {"PRECISION": "ieee", **_WEIGHT_CONFIGS[2 if dtype == "bf16" else 4]},
                {"num_warps": 4, "num_stages": 2},
            )
        )
    return cases
