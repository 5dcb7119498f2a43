"""What `prefix_attention` refuses, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import TaskBatch
from ..errors import ShapeError, UnsupportedError
from ..misfits import batch_misfit, count_misfit, described, input_misfit, misfit, nearest
from .reference import FORMS

__all__ = ["check_arguments"]

_NAME = "prefix_attention"
# Where the sizes that a message names come from.
_SIZES = "B and K are those of the query, G and Tk those of the key, and P of each task's own prefix."


def _expect_shape(name: str, tensor: Tensor, shape: Sequence[int | str], like: Tensor) -> None:
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != like.dtype or tensor.device != like.device:
        raise misfit(_NAME, name, tensor, shape, like, _SIZES)


def _expect_broadcast(name: str, tensor: Tensor, shape: tuple[int, ...], allowed: str, like: Tensor) -> None:
    fits = tensor.dim() == 4 and all(got in (1, want) for got, want in zip(tensor.shape, shape, strict=True))
    if not fits or not (tensor.dtype == torch.bool or tensor.is_floating_point()):
        wanted = f"{allowed}, broadcast to {list(shape)}"
        raise ShapeError(_NAME, name, expected=wanted, got=described(tensor), hint=_broadcast_cure(name, tensor, shape))
    if tensor.device != like.device:
        cure = f"Use {name}.to({str(like.device)!r})."
        raise ShapeError(_NAME, name, expected=f"{allowed}, on {like.device}", got=described(tensor), hint=cure)


def _broadcast_cure(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str:
    rows, heads, queries, keys = shape
    if tensor.shape == (rows, keys):
        return f"Use {name}.bool()[:, None, None, :]." if name == "mask" else f"Use {name}[:, None, None, :]."
    if tensor.shape == (queries, keys):
        return f"Use {name}[None, None]."
    if tensor.dim() == 3:
        return f"Use {name}[None]." if tensor.shape[0] == heads != rows else f"Use {name}[:, None]."
    if tensor.dtype != torch.bool and not tensor.is_floating_point():
        return f"Use {name}.bool(), True for what is attended to." if name == "mask" else f"Use {name}.float()."
    return "The keys of the prefixes are not among its last axis: it has one entry a key of the row itself."


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Sequence[Tensor],
    prefix_value: Sequence[Tensor],
    batch: TaskBatch,
    mask: Tensor | None,
    position_bias: Tensor | None,
    form: str,
    return_gate: bool,
) -> None:
    """Raise `ShapeError` or `UnsupportedError` unless the arguments of `prefix_attention` fit together."""
    if query.dim() != 4 or not query.is_floating_point():
        raise input_misfit(_NAME, "query", query, "[B, H, Tq, K]", 4)
    rows, heads, queries, dim = query.shape
    _expect_shape("key", key, (rows, "G", "Tk", dim), query)
    groups, keys = key.shape[1], key.shape[2]
    _expect_shape("value", value, (rows, groups, keys, dim), query)
    if groups == 0 or heads % groups:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ShapeError(
            _NAME,
            "key's heads",
            expected=f"a divisor of the query's {heads} heads",
            got=str(groups),
            hint=f"Use key and value of {fitting} heads, each of which serves as many queries.",
        )
    if len(prefix_key) != batch.num_tasks or len(prefix_value) != batch.num_tasks:
        raise count_misfit(
            _NAME,
            "number of prefixes",
            {"prefix_key": len(prefix_key), "prefix_value": len(prefix_value)},
            batch.num_tasks,
            expected=f"one key and one value prefix for each of the batch's {batch.num_tasks} tasks",
        )
    if batch.batch_size != rows:
        raise batch_misfit(_NAME, "query", rows, batch.batch_size)
    for task, (pk, pv) in enumerate(zip(prefix_key, prefix_value, strict=True)):
        _expect_shape(f"prefix_key[{task}]", pk, (groups, "P", dim), query)
        _expect_shape(f"prefix_value[{task}]", pv, (groups, pk.shape[1], dim), query)
    if mask is not None:
        allowed = "bool (True attends) or additive [B, H, Tq, Tk]"
        _expect_broadcast("mask", mask, (rows, heads, queries, keys), allowed, query)
    if position_bias is not None:
        allowed = "additive [1 or B, H, Tq, Tk]"
        _expect_broadcast("position_bias", position_bias, (rows, heads, queries, keys), allowed, query)
        if position_bias.dtype == torch.bool:
            raise ShapeError(
                _NAME,
                "position_bias",
                expected="a floating-point tensor",
                got=described(position_bias),
                hint="Give what is True for tokens to attend to as mask.",
            )
    if form not in FORMS:
        cure = nearest(form, FORMS, "Use 'softmax', prefix tuning itself.")
        raise UnsupportedError(_NAME, "form", expected=f"one of {FORMS}", got=repr(form), hint=cure)
    if return_gate and form != "softmax":
        raise UnsupportedError(
            _NAME,
            "return_gate",
            expected="form='softmax': the other forms have no gate",
            got=repr(form),
            hint="Use return_gate=False.",
        )
