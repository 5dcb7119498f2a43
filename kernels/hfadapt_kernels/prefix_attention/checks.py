"""What `prefix_attention` refuses, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import TaskBatch
from ..errors import ShapeError, UnsupportedError
from .reference import FORMS

__all__ = ["check_arguments"]

_NAME = "prefix_attention"


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _expect_shape(name: str, tensor: Tensor, shape: Sequence[int | str], like: Tensor) -> None:
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != like.dtype or tensor.device != like.device:
        wanted = f"{like.dtype} [{', '.join(map(str, shape))}] on {like.device}"
        raise ShapeError(_NAME, name, expected=wanted, got=_describe(tensor))


def _expect_broadcast(name: str, tensor: Tensor, shape: tuple[int, ...], allowed: str) -> None:
    fits = tensor.dim() == 4 and all(got in (1, want) for got, want in zip(tensor.shape, shape, strict=True))
    if not fits or not (tensor.dtype == torch.bool or tensor.is_floating_point()):
        wanted = f"{allowed}, broadcast to {list(shape)}"
        raise ShapeError(_NAME, name, expected=wanted, got=_describe(tensor))


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
        raise ShapeError(_NAME, "query", expected="a floating-point [B, H, Tq, K]", got=_describe(query))
    rows, heads, queries, dim = query.shape
    _expect_shape("key", key, (rows, "G", "Tk", dim), query)
    groups, keys = key.shape[1], key.shape[2]
    _expect_shape("value", value, (rows, groups, keys, dim), query)
    if groups == 0 or heads % groups:
        raise ShapeError(_NAME, "key's heads", expected=f"a divisor of the query's {heads} heads", got=str(groups))
    if len(prefix_key) != batch.num_tasks or len(prefix_value) != batch.num_tasks:
        raise ShapeError(
            _NAME,
            "number of prefixes",
            expected=f"one key and one value prefix for each of the batch's {batch.num_tasks} tasks",
            got=f"{len(prefix_key)} and {len(prefix_value)}",
        )
    if batch.batch_size != rows:
        raise ShapeError(
            _NAME,
            "batch",
            expected=f"{rows} task ids, one a row of query",
            got=str(batch.batch_size),
            hint="Use batch.expand(repeats) where a model repeats its rows.",
        )
    for task, (pk, pv) in enumerate(zip(prefix_key, prefix_value, strict=True)):
        _expect_shape(f"prefix_key[{task}]", pk, (groups, "P", dim), query)
        _expect_shape(f"prefix_value[{task}]", pv, (groups, pk.shape[1], dim), query)
    if mask is not None:
        _expect_broadcast("mask", mask, (rows, heads, queries, keys), "bool (True attends) or additive [B, H, Tq, Tk]")
    if position_bias is not None:
        _expect_broadcast("position_bias", position_bias, (rows, heads, queries, keys), "additive [1 or B, H, Tq, Tk]")
        if position_bias.dtype == torch.bool:
            raise ShapeError(_NAME, "position_bias", expected="a floating-point tensor", got=_describe(position_bias))
    if form not in FORMS:
        raise UnsupportedError(_NAME, "form", expected=f"one of {FORMS}", got=repr(form))
    if return_gate and form != "softmax":
        raise UnsupportedError(
            _NAME, "return_gate", expected="form='softmax': the other forms have no gate", got=repr(form)
        )
