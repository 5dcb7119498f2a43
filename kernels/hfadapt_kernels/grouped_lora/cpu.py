"""grouped_lora and lora_linear through the C++ kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu_tensors import as_rows, empty_result, lacks_dtype, widen
from .schema import LINEAR, OP, Gradients, empty_gradients, empty_low

__all__ = ["add_in_place"]


def _supports(*, device: str, dtype: torch.dtype) -> str | None:
    return lacks_dtype(dtype)


def _factors(learned: list[Tensor], scale: list[float]) -> Tensor:
    factors = torch.tensor(scale, dtype=torch.float32)
    return factors * torch.cat([t.reshape(1).float() for t in learned]) if learned else factors


def _add(x: Tensor, y: Tensor | None, out: Tensor, low: Tensor, args: tuple[Any, ...]) -> None:
    a, b, learned, scale, ids, dropout, seed = args
    ids = None if ids is None else ids.contiguous()
    rows = None if y is None else as_rows(y)
    torch.ops.hfadapt_cpu.grouped_lora_forward(
        as_rows(x), rows, a, b, _factors(learned, scale), ids, dropout, seed, out, low
    )


def add_in_place(y: Tensor, x: Tensor, *lora: Any) -> None:
    """Add the update to ``y``, below autograd; ``lora`` as the schema orders it from ``a`` on."""
    _add(x, y, y, x.new_empty(0), lora)


def _forward(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    *lora, save = args
    if x.dtype == torch.float16:
        return tuple(t.half() for t in _forward(*widen([x, y]), *widen(lora), save))  # type: ignore[return-value]
    out = empty_result(x, (*x.shape[:-1], lora[1][0].shape[0]))
    low = empty_low(x, lora[0], save, empty_result)
    _add(x, y, out, low, tuple(lora))
    return out, low


def _linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    *lora, save = args
    if x.dtype == torch.float16:
        return tuple(t.half() for t in _linear_forward(*widen([x, weight, bias]), *widen(lora), save))  # type: ignore[return-value]
    out = F.linear(x, weight, bias)
    low = empty_low(x, lora[0], save, empty_result)
    _add(x, out, out, low, tuple(lora))
    return out, low


def _backward(grad: Tensor, x: Tensor, low: Tensor, *args: Any) -> Gradients:
    *lora, needs = args
    return _gradients(grad, x, low, None, lora, needs)


def _linear_backward(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, *args: Any) -> Gradients:
    *lora, needs = args
    return _gradients(grad, x, low, weight, lora, needs)


def _gradients(
    grad: Tensor, x: Tensor, low: Tensor, weight: Tensor | None, lora: list[Any], needs: list[bool]
) -> Gradients:
    if x.dtype == torch.float16:
        wide_grad, wide_x, wide_low, wide_weight = widen([grad, x, low, weight])
        dx, da, db, dlearned = _gradients(wide_grad, wide_x, wide_low, wide_weight, widen(lora), needs)
        return dx.half(), [t.half() for t in da], [t.half() for t in db], [t.half() for t in dlearned]
    a, b, learned, scale, ids, dropout, seed = lora
    ids = None if ids is None else ids.contiguous()
    dx, da, db, dlearned = empty_gradients(x, a, b, learned, needs, empty_result)
    add = weight is not None and needs[0]
    if weight is not None and needs[0]:
        dx = torch.matmul(grad, weight)
    dscale = torch.empty(len(learned) if needs[3] else 0, dtype=torch.float32)
    torch.ops.hfadapt_cpu.grouped_lora_backward(
        as_rows(grad), as_rows(x), low, a, b, _factors(learned, scale), ids, dropout, seed, add, dx, da, db, dscale
    )
    if needs[3]:
        for target, value, fixed in zip(dlearned, dscale.unbind(), scale, strict=True):
            target.copy_(value * fixed)
    return dx, da, db, dlearned


OP.register("cpu", _forward, _backward, _supports)
LINEAR.register("cpu", _linear_forward, _linear_backward, _supports)
