"""Schemas, fakes and autograd of ``hfadapt::grouped_lora`` and ``hfadapt::lora_linear``, and their registries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .. import opaque
from ..backend import FusedOp
from ..batch import check_ids, tasks_with_rows

__all__ = ["LINEAR", "OP", "empty_gradients", "empty_low", "forward_op", "linear_op"]

OP = FusedOp("grouped_lora")
LINEAR = FusedOp("lora_linear")
Gradients = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]

_LORA_ARGS = "Tensor[] a, Tensor[] b, Tensor[] learned, float[] scale, Tensor? ids, float dropout, Tensor? seed"
_GRADIENTS = "(Tensor grad_x, Tensor[] grad_a, Tensor[] grad_b, Tensor[] grad_learned)"
_FORWARD_SCHEMA = f"(Tensor x, Tensor? y, {_LORA_ARGS}, bool save) -> (Tensor out, Tensor low)"
_BACKWARD_SCHEMA = f"(Tensor grad, Tensor x, Tensor low, {_LORA_ARGS}, bool[] needs) -> {_GRADIENTS}"
_LINEAR_SCHEMA = f"(Tensor x, Tensor weight, Tensor? bias, {_LORA_ARGS}, bool save) -> (Tensor out, Tensor low)"
_LINEAR_BACKWARD_SCHEMA = (
    f"(Tensor grad, Tensor x, Tensor low, Tensor weight, {_LORA_ARGS}, bool[] needs) -> {_GRADIENTS}"
)


Empty = Callable[[Tensor, Sequence[int]], Tensor]


def empty_low(x: Tensor, a: list[Tensor], save: bool, empty: Empty = Tensor.new_empty) -> Tensor:
    """Empty ``(drop(x) A_tᵀ)`` [rows, largest R], which the backward reads; no element when not ``save``."""
    if not save:
        return x.new_empty(0)
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    return empty(x, (rows, max(weight.shape[0] for weight in a)))


def empty_gradients(
    x: Tensor,
    a: list[Tensor],
    b: list[Tensor],
    learned: list[Tensor],
    needs: list[bool],
    empty: Empty = Tensor.new_empty,
) -> Gradients:
    """Empty gradients, contiguous; those that are not needed (x, a, b, learned) have no element."""

    def like(tensor: Tensor, needed: bool) -> Tensor:
        return empty(tensor, tensor.shape if needed else (0,))

    need_x, need_a, need_b, need_learned = needs
    return (
        like(x, need_x),
        [like(t, need_a) for t in a],
        [like(t, need_b) for t in b],
        [like(t, need_learned) for t in learned],
    )


def _kernel(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    check_ids("grouped_lora", args[5], len(args[1]))
    return OP.select(x.device.type, x.dtype).forward(x, *args)


def _backward_kernel(grad: Tensor, x: Tensor, *args: Any) -> Gradients:
    return OP.select(x.device.type, x.dtype).backward(grad, x, *args)


def _linear_kernel(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    check_ids("lora_linear", args[6], len(args[2]))
    return LINEAR.select(x.device.type, x.dtype).forward(x, *args)


def _linear_backward_kernel(grad: Tensor, x: Tensor, *args: Any) -> Gradients:
    return LINEAR.select(x.device.type, x.dtype).backward(grad, x, *args)


def _fake(x: Tensor, y: Tensor | None, a: list[Tensor], b: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], b[0].shape[0]), empty_low(x, a, rest[-1])


def _backward_fake(grad: Tensor, x: Tensor, low: Tensor, *args: Any) -> Gradients:
    a, b, learned = args[:3]
    return empty_gradients(x, a, b, learned, args[-1])


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None, a: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], weight.shape[0]), empty_low(x, a, rest[-1])


def _linear_backward_fake(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, *args: Any) -> Gradients:
    return _backward_fake(grad, x, low, *args)


def _save(ctx: Any, tensors: list[Tensor | None], lora: tuple[Any, ...]) -> None:
    a, b, learned, scale, ids, dropout, seed = lora
    ctx.save_for_backward(*tensors, ids, seed, *a, *b, *learned)
    ctx.tasks, ctx.options = len(a), (scale, dropout)
    ctx.set_materialize_grads(False)


def _restore(ctx: Any, count: int) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The first ``count`` saved tensors, and the arguments of the update as the schemas order them."""
    saved = list(ctx.saved_tensors)
    tensors, (ids, seed), weights = saved[:count], saved[count : count + 2], saved[count + 2 :]
    tasks, (scale, dropout) = ctx.tasks, ctx.options
    lora = (weights[:tasks], weights[tasks : 2 * tasks], weights[2 * tasks :], scale, ids, dropout, seed)
    return tensors, lora


def _per_task(gradients: list[Tensor], needs: list[bool], ids: Tensor | None) -> list[Tensor | None]:
    """``None`` where no gradient was asked for, and for tasks without a row: those must not move, not even by decay."""
    present = tasks_with_rows(ids, len(gradients))
    return [g if need and here else None for g, need, here in zip(gradients, needs, present, strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, [inputs[0], output[1]], inputs[2:9])


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    need = ctx.needs_input_grad
    wanted = [need[0], any(need[2]), any(need[3]), any(need[4])]
    (x, low), lora = _restore(ctx, 2)
    dx, (da, db, dl) = None, ([None] * len(weights) for weights in lora[:3])
    if grad is not None and any(wanted):
        dx, da, db, dl = _backward_op(grad, x, low, *lora, wanted)
        da, db, dl = (_per_task(g, list(n), lora[4]) for g, n in ((da, need[2]), (db, need[3]), (dl, need[4])))
    return (dx if need[0] else None, grad if need[1] else None, da, db, dl, *(None,) * 5)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, [inputs[0], output[1], inputs[1]], inputs[3:10])


def _linear_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    need = ctx.needs_input_grad
    wanted = [need[0], any(need[3]), any(need[4]), any(need[5])]
    (x, low, weight), lora = _restore(ctx, 3)
    dx, (da, db, dl) = None, ([None] * len(weights) for weights in lora[:3])
    if grad is None:
        return (None, None, None, da, db, dl, *(None,) * 5)
    if any(wanted):
        dx, da, db, dl = _linear_backward_op(grad, x, low, weight, *lora, wanted)
        da, db, dl = (_per_task(g, list(n), lora[4]) for g, n in ((da, need[3]), (db, need[4]), (dl, need[5])))
    rows = grad.flatten(0, -2)
    return (
        dx if need[0] else None,
        rows.t() @ x.flatten(0, -2) if need[1] else None,
        rows.sum(0) if need[2] else None,
        da,
        db,
        dl,
        *(None,) * 5,
    )


forward_op = opaque.define("grouped_lora", _FORWARD_SCHEMA, _kernel, _fake, setup_context=_setup, backward=_backward)
_backward_op = opaque.define(
    "grouped_lora_backward", _BACKWARD_SCHEMA, _backward_kernel, _backward_fake, autocast=False
)
linear_op = opaque.define(
    "lora_linear", _LINEAR_SCHEMA, _linear_kernel, _linear_fake, setup_context=_linear_setup, backward=_linear_backward
)
_linear_backward_op = opaque.define(
    "lora_linear_backward", _LINEAR_BACKWARD_SCHEMA, _linear_backward_kernel, _linear_backward_fake, autocast=False
)
