"""The reference backend of the opaque op: same saved tensors as the kernels, gradients by torch's autograd.

Eager code calls `reference.py` directly; this runs where the op itself has to (``torch.compile``, direct calls).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import get_activation
from ..batch import Segment, check_ids, segments_of
from ..opaque import autograd_inside
from ..rows import row_linear, rowwise
from .checks import NAME, NORMS
from .reference import adapter_delta, keep_factor, normalise, per_segment
from .saved import NEED_H, empty_grads, saved_shapes, stat_dtype

__all__ = ["backward", "forward"]

_NORM_NAMES = {code: name for name, code in NORMS.items()}


def _segments(ids: Tensor | None, rows: int, tasks: int) -> list[Segment]:
    if ids is None:
        return [Segment(0, slice(0, rows))]
    check_ids(NAME, ids, tasks)
    return segments_of(ids.tolist(), ids.device)


def forward(
    x, residual, h, down, up, down_bias, up_bias, scale, scale_values, norm_weight, norm_bias, ids, seed, activation,
    norm, eps, norm_offset, dropout, save,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """See the schema."""
    segments = _segments(ids, x.shape[0], len(down))
    base = x if residual is None else x + residual
    z_shape, pre_shape, stats = saved_shapes(x, down, norm, save)
    pre = x.new_zeros(pre_shape)
    by_row = pre.view(*x.shape[:-1], -1) if save else pre

    def one(segment: Segment) -> Tensor:
        t, rows = segment.task, segment.rows
        if t < 0:
            return base[rows]
        bias = down_bias[t] if down_bias else None
        if save:
            by_row[rows, ..., : down[t].shape[0]] = row_linear(h[rows], down[t], bias)
        keep = keep_factor(h, rows, down[t].shape[0], dropout, seed)
        s = scale[t] if scale else scale_values[t]
        delta = adapter_delta(h[rows], down[t], up[t], bias, up_bias[t] if up_bias else None, s, activation, keep)
        return base[rows] + delta

    z = per_segment(one, segments, base)
    out = normalise(z, _NORM_NAMES[norm], norm_weight, norm_bias, eps, norm_offset)
    # Results of an op must not share memory with its arguments or with each other.
    out = out.clone() if out is z or out is x else out
    wide = z.to(stat_dtype(x)).reshape(-1, x.shape[-1])
    mean, rstd = wide.new_zeros(stats), wide.new_zeros(stats)
    if stats:
        if norm == 1:
            mean = wide.mean(-1)
        rstd = torch.rsqrt((wide - mean.unsqueeze(-1)).pow(2).mean(-1) + eps)
    return out, z.clone() if z_shape != [0] else x.new_empty(0), pre, mean, rstd


def backward(
    grad, z, pre, mean, rstd, h, down, up, up_bias, scale, scale_values, norm_weight, ids, seed, activation, norm,
    norm_offset, dropout, needs,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """See the schema. The norm is differentiated from z and its saved statistics, the bottleneck from pre."""
    dz, dh, grads = empty_grads(grad, h, down, up, scale, norm, needs)
    width, stat = grad.shape[-1], stat_dtype(grad)
    flow = grad
    if norm:
        saved = z.reshape(-1, width).to(stat)
        # z was rounded when it was saved: centre what was saved.
        centre = saved.mean(-1, keepdim=True) if norm == 1 else 0.0
        xhat = ((saved - centre) * rstd.unsqueeze(-1)).view(z.shape)
        wide = grad.to(stat)
        weighted = wide if norm_weight is None else wide * (norm_weight.to(stat) + norm_offset)
        centre = weighted.mean(-1, keepdim=True) if norm == 1 else 0.0
        spread = (weighted * xhat).mean(-1, keepdim=True)
        dz.copy_(rstd.view(*z.shape[:-1], 1) * (weighted - centre - xhat * spread))
        flow = dz
        _assign(grads[-2], (wide * xhat).reshape(-1, width).sum(0))
        _assign(grads[-1], wide.reshape(-1, width).sum(0))
    if needs & NEED_H:
        dh.zero_()
    for target in grads[:-2]:
        target.zero_()
    by_row = pre.view(*grad.shape[:-1], -1)
    for segment in _segments(ids, grad.shape[0], len(down)):
        t, rows = segment.task, segment.rows
        if t < 0:
            continue
        keep = keep_factor(h, rows, down[t].shape[0], dropout, seed)
        learned = bool(scale)
        leaves = [by_row[rows][..., : down[t].shape[0]], up[t], scale[t] if learned else grad.new_tensor(0.0)]
        bias = up_bias[t] if up_bias else None
        with autograd_inside():
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            bias = None if bias is None else bias.detach().requires_grad_()
            s = leaves[2] if learned else scale_values[t]
            delta = _from_pre(leaves[0], leaves[1], bias, s, activation, keep)
            inputs = [*leaves[: 3 if learned else 2], *([] if bias is None else [bias])]
            found = list(torch.autograd.grad(delta, inputs, flow[rows]))
        dpre, dup = found[0], found[1]
        flat = dpre.reshape(-1, dpre.shape[-1])
        if needs & NEED_H:
            dh[rows] = row_linear(dpre, down[t].t())
        _assign(grads[5 * t], flat.t() @ h[rows].reshape(-1, h.shape[-1]))
        _assign(grads[5 * t + 1], dup)
        _assign(grads[5 * t + 2], flat.sum(0))
        if bias is not None:
            _assign(grads[5 * t + 3], found[-1])
        if learned:
            _assign(grads[5 * t + 4], found[2])
    return dz, dh, grads


def _from_pre(pre, up, up_bias, scale, activation, keep):  # type: ignore[no-untyped-def]
    hidden = rowwise(get_activation(activation).fn, pre)
    return row_linear(hidden if keep is None else hidden * keep, up, up_bias) * scale


def _assign(target: Tensor, value: Tensor) -> None:
    if target.numel():
        target.copy_(value)
