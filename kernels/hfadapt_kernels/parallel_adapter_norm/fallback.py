"""What runs without a compiler: the formula in PyTorch, with the same saved tensors as the kernels.

Eager code calls `reference.py` directly; this runs where the op itself has to (``torch.compile``, direct calls).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import get_activation
from ..batch import Segment, check_ids, segments_of
from ..calls import takes
from ..opaque import autograd_inside
from ..rows import row_linear, rowwise
from .checks import NAME, NORMS
from .reference import adapter_delta, keep_factor, normalise, per_segment
from .saved import NEED_H, empty_grads, saved_shapes, stat_dtype
from .schema import Backward, Forward

__all__ = ["backward", "forward"]

_NORM_NAMES = {code: name for name, code in NORMS.items()}


def _segments(ids: Tensor | None, rows: int, tasks: int) -> list[Segment]:
    if ids is None:
        return [Segment(0, slice(0, rows))]
    check_ids(NAME, ids, tasks)
    return segments_of(ids.tolist(), ids.device)


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, ...]:
    """See the schema."""
    x, h = call.x, call.h
    segments = _segments(call.ids, x.shape[0], len(call.down))
    base = x if call.residual is None else x + call.residual
    z_shape, pre_shape, stats = saved_shapes(x, call.down, call.norm, call.save)
    pre = x.new_zeros(pre_shape)
    by_row = pre.view(*x.shape[:-1], -1) if call.save else pre

    def one(segment: Segment) -> Tensor:
        t, rows = segment.task, segment.rows
        if t < 0:
            return base[rows]
        down, bias = call.down[t], call.down_bias[t] if call.down_bias else None
        if call.save:
            by_row[rows, ..., : down.shape[0]] = row_linear(h[rows], down, bias)
        keep = keep_factor(h, rows, down.shape[0], call.dropout, call.seed)
        scale = call.scale[t] if call.scale else call.scale_values[t]
        up_bias = call.up_bias[t] if call.up_bias else None
        return base[rows] + adapter_delta(h[rows], down, call.up[t], bias, up_bias, scale, call.activation, keep)

    z = per_segment(one, segments, base)
    out = normalise(z, _NORM_NAMES[call.norm], call.norm_weight, call.norm_bias, call.eps, call.norm_offset)
    # Results of an op must not share memory with its arguments or with each other.
    out = out.clone() if out is z or out is x else out
    wide = z.to(stat_dtype(x)).reshape(-1, x.shape[-1])
    mean, rstd = wide.new_zeros(stats), wide.new_zeros(stats)
    if stats:
        if call.norm == 1:
            mean = wide.mean(-1)
        rstd = torch.rsqrt((wide - mean.unsqueeze(-1)).pow(2).mean(-1) + call.eps)
    return out, z.clone() if z_shape != [0] else x.new_empty(0), pre, mean, rstd


@takes(Backward)
def backward(call: Backward) -> tuple[Tensor, Tensor, list[Tensor]]:
    """See the schema. The norm is differentiated from z and its saved statistics, the bottleneck from pre."""
    grad, h, down = call.grad, call.h, call.down
    dz, dh, grads = empty_grads(grad, h, down, call.up, call.scale, call.norm, call.needs)
    flow = grad
    if call.norm:
        flow = dz
        _through_norm(call, dz, grads)
    if call.needs & NEED_H:
        dh.zero_()
    for target in grads[:-2]:
        target.zero_()
    by_row = call.pre.view(*grad.shape[:-1], -1)
    learned = bool(call.scale)
    for segment in _segments(call.ids, grad.shape[0], len(down)):
        t, rows = segment.task, segment.rows
        if t < 0:
            continue
        keep = keep_factor(h, rows, down[t].shape[0], call.dropout, call.seed)
        leaves = [by_row[rows][..., : down[t].shape[0]], call.up[t], call.scale[t] if learned else grad.new_tensor(0.0)]
        bias = call.up_bias[t] if call.up_bias else None
        with autograd_inside():
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            bias = None if bias is None else bias.detach().requires_grad_()
            hidden = rowwise(get_activation(call.activation).fn, leaves[0])
            hidden = hidden if keep is None else hidden * keep
            delta = row_linear(hidden, leaves[1], bias) * (leaves[2] if learned else call.scale_values[t])
            inputs = [*leaves[: 3 if learned else 2], *([] if bias is None else [bias])]
            found = list(torch.autograd.grad(delta, inputs, flow[rows]))
        dpre, dup = found[0], found[1]
        flat = dpre.reshape(-1, dpre.shape[-1])
        if call.needs & NEED_H:
            dh[rows] = row_linear(dpre, down[t].t())
        _assign(grads[5 * t], flat.t() @ h[rows].reshape(-1, h.shape[-1]))
        _assign(grads[5 * t + 1], dup)
        _assign(grads[5 * t + 2], flat.sum(0))
        if bias is not None:
            _assign(grads[5 * t + 3], found[-1])
        if learned:
            _assign(grads[5 * t + 4], found[2])
    return dz, dh, grads


def _through_norm(call: Backward, dz: Tensor, grads: list[Tensor]) -> None:
    """The gradient of z into ``dz``, and those of the norm's weight and bias."""
    width, stat = call.grad.shape[-1], stat_dtype(call.grad)
    saved = call.z.reshape(-1, width).to(stat)
    # z was rounded when it was saved: centre what was saved.
    centre = saved.mean(-1, keepdim=True) if call.norm == 1 else 0.0
    xhat = ((saved - centre) * call.rstd.unsqueeze(-1)).view(call.z.shape)
    wide = call.grad.to(stat)
    weighted = wide if call.norm_weight is None else wide * (call.norm_weight.to(stat) + call.norm_offset)
    centre = weighted.mean(-1, keepdim=True) if call.norm == 1 else 0.0
    spread = (weighted * xhat).mean(-1, keepdim=True)
    dz.copy_(call.rstd.view(*call.z.shape[:-1], 1) * (weighted - centre - xhat * spread))
    _assign(grads[-2], (wide * xhat).reshape(-1, width).sum(0))
    _assign(grads[-1], wide.reshape(-1, width).sum(0))


def _assign(target: Tensor, value: Tensor) -> None:
    if target.numel():
        target.copy_(value)
