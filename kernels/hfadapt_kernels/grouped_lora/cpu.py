"""grouped_lora and lora_linear through the C++ kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..calls import takes
from ..cpu_tensors import as_rows, empty_result, lacks_dtype, widen
from ..namespace import cpu_ops
from .schema import (
    Backward,
    Forward,
    Gradients,
    LinearBackward,
    LinearForward,
    empty_gradients,
    empty_low,
)

__all__ = ["add_in_place", "backward", "forward", "linear_backward", "linear_forward", "supports"]


def supports(*, device: str, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot serve the call; ``None`` when they can."""
    return lacks_dtype(dtype)


def _factors(learned: list[Tensor], scale: list[float]) -> Tensor:
    factors = torch.tensor(scale, dtype=torch.float32)
    return factors * torch.cat([t.reshape(1).float() for t in learned]) if learned else factors


def _add(call: Forward, out: Tensor, low: Tensor) -> None:
    ids = None if call.ids is None else call.ids.contiguous()
    rows = None if call.y is None else as_rows(call.y)
    cpu_ops.grouped_lora_forward(
        as_rows(call.x),
        rows,
        call.a,
        call.b,
        _factors(call.learned, call.scale),
        ids,
        call.dropout,
        call.seed,
        out,
        low,
    )


def add_in_place(call: Forward) -> None:
    """Add the update to ``y``, below autograd."""
    assert call.y is not None
    _add(call, call.y, call.x.new_empty(0))


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, Tensor]:
    """See the schema; float16 is computed in float32."""
    if call.x.dtype == torch.float16:
        out, low = forward(*widen(call))
        return out.half(), low.half()
    out = empty_result(call.x, (*call.x.shape[:-1], call.b[0].shape[0]))
    low = empty_low(call.x, call.a, call.save, empty_result)
    _add(call, out, low)
    return out, low


@takes(LinearForward)
def linear_forward(call: LinearForward) -> tuple[Tensor, Tensor]:
    """See the schema; float16 is computed in float32."""
    if call.x.dtype == torch.float16:
        out, low = linear_forward(*widen(call))
        return out.half(), low.half()
    out = F.linear(call.x, call.weight, call.bias)
    low = empty_low(call.x, call.a, call.save, empty_result)
    _add(call.update(out), out, low)
    return out, low


@takes(Backward)
def backward(call: Backward) -> Gradients:
    """See the schema."""
    return _gradients(call, None)


@takes(LinearBackward)
def linear_backward(call: LinearBackward) -> Gradients:
    """See the schema."""
    return _gradients(call.update(), call.weight)


def _gradients(call: Backward, weight: Tensor | None) -> Gradients:
    if call.x.dtype == torch.float16:
        dx, da, db, dlearned = _gradients(Backward(*widen(call)), widen(weight))
        return dx.half(), [t.half() for t in da], [t.half() for t in db], [t.half() for t in dlearned]
    grad, x, a, b, learned, needs = call.grad, call.x, call.a, call.b, call.learned, call.needs
    ids = None if call.ids is None else call.ids.contiguous()
    dx, da, db, dlearned = empty_gradients(x, a, b, learned, needs, empty_result)
    add = weight is not None and needs[0]
    if weight is not None and needs[0]:
        dx = torch.matmul(grad, weight)
    dscale = torch.empty(len(learned) if needs[3] else 0, dtype=torch.float32)
    cpu_ops.grouped_lora_backward(
        as_rows(grad), as_rows(x), call.low, a, b, _factors(learned, call.scale), ids, call.dropout, call.seed, add, dx,
        da, db, dscale,
    )  # fmt: skip
    if needs[3]:
        for target, value, fixed in zip(dlearned, dscale.unbind(), call.scale, strict=True):
            target.copy_(value * fixed)
    return dx, da, db, dlearned
