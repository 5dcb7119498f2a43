"""Eager stand-in for the op until the kernel package has it."""

from __future__ import annotations

import torch.nn.functional as F

from hfadapt_kernels import get_activation


def parallel_adapter_norm(
    x, h, down, up, batch, *, down_bias=None, up_bias=None, activation="relu", scale=1.0, dropout=0.0, training=False
):
    from .rows import change_rows

    act = get_activation(activation).fn

    def compute(i, pick):
        low = act(F.linear(pick(h), down[i], None if down_bias is None else down_bias[i]))
        low = F.dropout(low, dropout, training)
        s = scale[i] if isinstance(scale, (list, tuple)) else scale
        return pick(x) + s * F.linear(low, up[i], None if up_bias is None else up_bias[i])

    return change_rows(batch, x, compute)
