"""prefix_attention through the C++ kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..calls import takes
from ..cpu_tensors import lacks_dtype
from ..namespace import cpu_ops
from .reference import FORMS
from .schema import Backward, Forward, Gradients, empty_gradients, empty_results

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype, form: str, head_dim: int) -> str | None:
    """Why the C++ kernels cannot serve the call; ``None`` when they can."""
    return lacks_dtype(dtype)


def _rows(tensor: Tensor, half: bool) -> Tensor:
    """The tensor with stride 1 on its last axis; float16 is computed in float32."""
    tensor = tensor.float() if half else tensor
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _prepare(call: Forward) -> tuple[list[Any], bool]:
    query, key, value, pk, pv, ids, mask, bias, causal, scaling, form, dropout, seed = call
    half = query.dtype == torch.float16
    shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    if mask is not None:
        mask = (mask if mask.dtype == torch.bool else mask.float()).expand(shape)
    if bias is not None:
        bias = bias.float().expand(shape)
    pk, pv = ([(p.float() if half else p).contiguous() for p in prefixes] for prefixes in (pk, pv))
    ids = None if ids is None else ids.contiguous()
    number = None if seed is None else int(seed.item())
    rows = [_rows(t, half) for t in (query, key, value)]
    return [*rows, pk, pv, ids, mask, bias, causal, scaling, FORMS.index(form), dropout, number], half


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """See the schema."""
    prepared, half = _prepare(call)
    out, gate, lse = empty_results(prepared[0])
    cpu_ops.prefix_attention_forward(*prepared, out, gate)
    # The backward recomputes whole rows and needs no log-sum-exp.
    return out.half() if half else out, gate, lse.zero_()


@takes(Backward)
def backward(call: Backward) -> Gradients:
    """See the schema."""
    grad_gate, needs = call.grad_gate, call.needs
    prepared, half = _prepare(call.inputs)
    query, key, _, pk, pv, _, _, wide_bias = prepared[:8]
    need_query, need_key, need_bias, need_prefix = needs
    grads = empty_gradients(query, key, pk, pv, None, needs)
    grad_scores = query.new_empty(wide_bias.shape, dtype=torch.float32) if need_bias else None
    cpu_ops.prefix_attention_backward(
        _rows(call.grad_out, half),
        None if grad_gate is None else grad_gate.contiguous(),
        *prepared,
        grads[0] if need_query else None,
        grads[1] if need_key else None,
        grads[2] if need_key else None,
        grad_scores,
        grads[4] if need_prefix else [],
        grads[5] if need_prefix else [],
    )
    dq, dk, dv, dbias, dpk, dpv = grads
    if grad_scores is not None and call.position_bias is not None:
        dbias = grad_scores.sum_to_size(call.position_bias.shape).to(call.position_bias.dtype)
    if half:
        dq, dk, dv, dbias = (t.half() for t in (dq, dk, dv, dbias))
        dpk, dpv = [t.half() for t in dpk], [t.half() for t in dpv]
    return dq, dk, dv, dbias, dpk, dpv
