"""pal_attention through the C++ kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..cpu_tensors import as_rows, lacks_dtype, widen
from .schema import OP, Results, empty_gradients, empty_results


def _supports(*, device: str, dtype: torch.dtype, head_dim: int, same_size: bool) -> str | None:
    return lacks_dtype(dtype) or (None if same_size else "the tasks' pal sizes differ")


def _additive(mask: Tensor | None) -> Tensor | None:
    """[B or 1, 1, T or 1, T] as contiguous float32 [B or 1, T or 1, T], to be added to the scores."""
    if mask is None:
        return None
    mask = mask.squeeze(1)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    mask = mask if mask.shape[-1] == 1 or mask.stride(-1) == 1 else mask.contiguous()
    return mask.float().contiguous()


def _arguments(x: Tensor, weights: list[Tensor], present: list[bool], *options: Any) -> tuple[Any, ...]:
    ids, mask, num_heads, causal, activation, dropout, seed = options
    code = ACTIVATIONS[activation].code
    flags = [int(here) for here in present]
    ids = None if ids is None else ids.contiguous()
    return (as_rows(x), x.shape[0], weights, flags, ids, _additive(mask), num_heads, causal, code, dropout, seed)


def _forward(x: Tensor, weights: list[Tensor], present: list[bool], *rest: Any) -> Results:
    *options, save = rest
    if x.dtype == torch.float16:
        out, hidden, lse, pre = _forward(x.float(), widen(weights), present, *rest)
        return out.half(), hidden.half(), lse, pre.half()
    num_heads, activation = options[2], options[4]
    results = empty_results(x, weights, present, num_heads, activation, save)
    if x.numel() == 0:
        return results
    out, hidden, lse, pre = results
    torch.ops.hfadapt_cpu.pal_attention_forward(*_arguments(x, weights, present, *options), out, hidden, pre)
    # The backward computes whole rows of probabilities again and needs no log-sum-exp.
    lse.zero_()
    return results


def _backward(grad: Tensor, x: Tensor, weights: list[Tensor], present: list[bool], *rest: Any) -> Any:
    if x.dtype == torch.float16:
        dx, dw = _backward(*widen([grad, x, weights]), present, *widen(list(rest)))
        return dx.half(), [w.half() for w in dw]
    *options, hidden, _, pre, needs = rest
    dx, dw = empty_gradients(x, weights, needs)
    if x.numel() == 0:
        return dx, [w.zero_() for w in dw]
    arguments = _arguments(x, weights, present, *options)
    torch.ops.hfadapt_cpu.pal_attention_backward(as_rows(grad), *arguments, hidden, pre, dx, dw)
    return dx, dw


OP.register("cpu", _forward, _backward, _supports)
