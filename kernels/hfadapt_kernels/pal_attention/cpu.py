"""pal_attention through the C++ kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..calls import takes
from ..cpu_tensors import as_rows, lacks_dtype, widen
from ..namespace import cpu_ops
from .schema import Backward, Forward, Results, empty_gradients, empty_results

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype, head_dim: int, same_size: bool) -> str | None:
    """Why the C++ kernels cannot serve the call; ``None`` when they can."""
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


def _arguments(call: Forward | Backward) -> tuple[Any, ...]:
    flags = [int(here) for here in call.present]
    ids = None if call.ids is None else call.ids.contiguous()
    return (
        as_rows(call.x), call.x.shape[0], call.weights, flags, ids, _additive(call.mask), call.num_heads, call.causal,
        ACTIVATIONS[call.activation].code, call.dropout, call.seed,
    )  # fmt: skip


@takes(Forward)
def forward(call: Forward) -> Results:
    """See the schema; float16 is computed in float32."""
    if call.x.dtype == torch.float16:
        out, hidden, lse, pre = forward(*call._replace(x=call.x.float(), weights=widen(call.weights)))
        return out.half(), hidden.half(), lse, pre.half()
    out, hidden, lse, pre = results = empty_results(call)
    if call.x.numel():
        cpu_ops.pal_attention_forward(*_arguments(call), out, hidden, pre)
        # The backward computes whole rows of probabilities again and needs no log-sum-exp.
        lse.zero_()
    return results


@takes(Backward)
def backward(call: Backward) -> tuple[Tensor, list[Tensor]]:
    """See the schema."""
    if call.x.dtype == torch.float16:
        dx, dw = backward(*widen(call))
        return dx.half(), [w.half() for w in dw]
    dx, dw = empty_gradients(call.x, call.weights, call.needs)
    if call.x.numel() == 0:
        return dx, [w.zero_() for w in dw]
    arguments = _arguments(call)
    cpu_ops.pal_attention_backward(as_rows(call.grad), *arguments, call.hidden, call.pre, dx, dw)
    return dx, dw
