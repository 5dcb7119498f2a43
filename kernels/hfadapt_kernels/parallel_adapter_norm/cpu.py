"""parallel_adapter_norm through the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import takes
from ..cpu_tensors import empty_result, lacks_dtype, widen
from ..namespace import cpu_ops
from .saved import empty_grads, saved_shapes, stat_dtype
from .schema import Backward, Forward

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot serve the call; ``None`` when they can."""
    return lacks_dtype(dtype)


def _rows(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.reshape(-1, tensor.shape[-1]).contiguous()


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _plain(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, ...]:
    """See the schema; float16 is computed in float32 (processors are a hundred times slower in it)."""
    if call.x.dtype == torch.float16:
        out, z, pre, mean, rstd = forward(*widen(call))
        return out.half(), z.half(), pre.half(), mean, rstd
    x, norm, save = call.x, call.norm, call.save
    z_shape, pre_shape, stats = saved_shapes(x, call.down, norm, save)
    out, z = empty_result(x, x.shape), empty_result(x, z_shape)
    # Columns beyond a task's rank, and rows without a task, are never read; zeros keep the output deterministic.
    ragged = call.ids is not None or any(d.shape[0] != call.down[0].shape[0] for d in call.down)
    pre = x.new_zeros(pre_shape) if ragged else empty_result(x, pre_shape)
    mean = x.new_zeros(stats, dtype=stat_dtype(x)) if norm == 2 else x.new_empty(stats, dtype=stat_dtype(x))
    rstd = x.new_empty(stats, dtype=stat_dtype(x))
    kept = save and norm > 0
    cpu_ops.parallel_adapter_norm_forward(
        _rows(x), _rows(call.residual), _rows(call.h), _plain(call.down), _plain(call.up), _plain(call.down_bias),
        _plain(call.up_bias), _plain(call.scale), call.scale_values, _flat(call.norm_weight), _flat(call.norm_bias),
        _flat(call.ids), call.seed, call.activation, norm, call.eps, call.norm_offset, call.dropout,
        out.view(-1, x.shape[-1]), z if kept else None, pre if save else None, mean if kept else None,
        rstd if kept else None,
    )  # fmt: skip
    return out, z, pre, mean, rstd


@takes(Backward)
def backward(call: Backward) -> tuple[Tensor, Tensor, list[Tensor]]:
    """See the schema."""
    if call.grad.dtype == torch.float16:
        dz, dh, grads = backward(*widen(call))
        return dz.half(), dh.half(), [g.half() for g in grads]
    norm = call.norm
    dz, dh, grads = empty_grads(call.grad, call.h, call.down, call.up, call.scale, norm, call.needs, empty_result)
    cpu_ops.parallel_adapter_norm_backward(
        _rows(call.grad), call.z if norm else None, call.pre, call.mean if norm else None, call.rstd if norm else None,
        _rows(call.h), _plain(call.down), _plain(call.up), _plain(call.up_bias), _plain(call.scale), call.scale_values,
        _flat(call.norm_weight), _flat(call.ids), call.seed, call.activation, norm, call.norm_offset, call.dropout,
        dz if norm else None, dh if dh.numel() else None, grads,
    )  # fmt: skip
    return dz, dh, grads
