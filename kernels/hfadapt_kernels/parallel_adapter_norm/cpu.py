"""parallel_adapter_norm through the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu_tensors import empty_result, lacks_dtype, widen
from .saved import empty_grads, saved_shapes, stat_dtype

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


def forward(
    x, residual, h, down, up, down_bias, up_bias, scale, scale_values, norm_weight, norm_bias, ids, seed, activation,
    norm, eps, norm_offset, dropout, save,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """See the schema; float16 is computed in float32 (processors are a hundred times slower in it)."""
    if x.dtype == torch.float16:
        out, z, pre, mean, rstd = forward(
            *widen((
                x, residual, h, down, up, down_bias, up_bias, scale, scale_values, norm_weight, norm_bias, ids, seed,
                activation, norm, eps, norm_offset, dropout, save,
            ))
        )  # fmt: skip
        return out.half(), z.half(), pre.half(), mean, rstd
    z_shape, pre_shape, stats = saved_shapes(x, down, norm, save)
    out, z = empty_result(x, x.shape), empty_result(x, z_shape)
    # Columns beyond a task's rank, and rows without a task, are never read; zeros keep the output deterministic.
    ragged = ids is not None or any(d.shape[0] != down[0].shape[0] for d in down)
    pre = x.new_zeros(pre_shape) if ragged else empty_result(x, pre_shape)
    mean = x.new_zeros(stats, dtype=stat_dtype(x)) if norm == 2 else x.new_empty(stats, dtype=stat_dtype(x))
    rstd = x.new_empty(stats, dtype=stat_dtype(x))
    kept = save and norm > 0
    torch.ops.hfadapt_cpu.parallel_adapter_norm_forward(
        _rows(x), _rows(residual), _rows(h), _plain(down), _plain(up), _plain(down_bias), _plain(up_bias),
        _plain(scale), scale_values, _flat(norm_weight), _flat(norm_bias), _flat(ids), seed, activation,
        norm, eps, norm_offset, dropout, out.view(-1, x.shape[-1]), z if kept else None, pre if save else None,
        mean if kept else None, rstd if kept else None,
    )  # fmt: skip
    return out, z, pre, mean, rstd


def backward(
    grad, z, pre, mean, rstd, h, down, up, up_bias, scale, scale_values, norm_weight, ids, seed, activation, norm,
    norm_offset, dropout, needs,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """See the schema."""
    if grad.dtype == torch.float16:
        dz, dh, grads = backward(
            *widen((
                grad, z, pre, mean, rstd, h, down, up, up_bias, scale, scale_values, norm_weight, ids, seed, activation,
                norm, norm_offset, dropout, needs,
            ))
        )  # fmt: skip
        return dz.half(), dh.half(), [g.half() for g in grads]
    dz, dh, grads = empty_grads(grad, h, down, up, scale, norm, needs, empty_result)
    torch.ops.hfadapt_cpu.parallel_adapter_norm_backward(
        _rows(grad), z if norm else None, pre, mean if norm else None, rstd if norm else None, _rows(h), _plain(down),
        _plain(up), _plain(up_bias), _plain(scale), scale_values, _flat(norm_weight), _flat(ids), seed, activation,
        norm, norm_offset, dropout, dz if norm else None, dh if dh.numel() else None, grads,
    )  # fmt: skip
    return dz, dh, grads
