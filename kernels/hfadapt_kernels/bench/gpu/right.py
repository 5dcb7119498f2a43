"""Parts (a) and (b): results and gradients against float64, and the same bits in every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ... import use_backend
from ...testing import assert_as_good_as_eager_nearby, nan_poisoned, rel_error
from .calls import OPS, Call, make
from .sizes import Size, Sizes
from .timing import captured

__all__ = ["correctness", "equal_bits", "replayed"]

Row = dict[str, Any]


def _step(call: Call, leaves: list[Tensor], grad: Tensor | None = None) -> list[Tensor]:
    """The result, and the gradient of each leaf."""
    out = call.run(leaves, call.batch())
    grad = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out) if grad is None else grad
    found = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True))]


def correctness(sizes: Sizes, device: str) -> Iterator[Row]:
    """A row an op, size and dtype: the largest error of the result and of the gradients, beside eager's.

    The rule is that of the tests (`assert_as_good_as_eager_nearby`): at most twice the error that the same formula has
    in eager torch on this problem and on its neighbours. Then, once an op, a captured step: ids change between replays.
    """
    for op in OPS:
        for size in sizes.odd:
            for dtype in sizes.dtypes:
                yield _compared(op, size, dtype, device)
        yield replayed(op, sizes, device)


def _compared(op: str, size: Size, dtype: torch.dtype, device: str) -> Row:
    call = make(op, size, dtype, device)
    with use_backend("triton"), nan_poisoned():
        ours = _step(call, call.leaves)

    def formula(leaves: list[Tensor]) -> list[Tensor]:
        with use_backend("reference"):
            return _step(call, [leaf.detach().requires_grad_() for leaf in leaves])

    exact = formula([leaf.double() for leaf in call.leaves])
    errors = [rel_error(a, b) for a, b in zip(ours, exact, strict=True)]
    row = {
        "op": op, "size": size.label(), "dtype": str(dtype), "forward_error": errors[0],
        "gradient_error": max(errors[1:]), "right": True,
    }  # fmt: skip
    groups = {"result" if i == 0 else f"gradient {i}": [i] for i in range(len(ours))}
    try:
        assert_as_good_as_eager_nearby(ours, formula, [leaf.detach() for leaf in call.leaves], groups)
    except AssertionError as wrong:
        row |= {"right": False, "why": str(wrong)}
    return row


def replayed(op: str, sizes: Sizes, device: str) -> Row:
    """The row of a captured step: whether each replay, with other ids, gave the bits of the same step not captured."""
    call = make(op, sizes.captured, sizes.dtypes[-1], device)
    right = True
    with use_backend("triton"):
        replay, result = captured(lambda: _step(call, call.leaves), device)
        for shift in (0, 1) if device != "cpu" else (1,):
            call.ids.copy_(call.ids.roll(shift))
            replay()
            right &= all(torch.equal(a, b) for a, b in zip(result(), _step(call, call.leaves), strict=True))
    return {"op": op, "size": sizes.captured.label(), "dtype": str(sizes.dtypes[-1]), "captured": True, "right": right}


def equal_bits(sizes: Sizes, device: str) -> Iterator[Row]:
    """A row an op: how many runs on the same tensors gave the bits of the first, forward and every gradient.

    A missing barrier or an atomic sum shows as bits that change.
    """
    for op in OPS:
        call = make(op, sizes.odd[0], sizes.dtypes[-1], device)
        with use_backend("triton"):
            first = _step(call, call.leaves)
            same = sum(
                all(torch.equal(a, b) for a, b in zip(first, _step(call, call.leaves), strict=True))
                for _ in range(sizes.repeats)
            )
        yield {
            "op": op,
            "size": sizes.odd[0].label(),
            "runs": sizes.repeats,
            "equal": same,
            "right": same == sizes.repeats,
        }
