"""``hfadapt::grouped_lora`` and ``hfadapt::lora_linear``: what backends are handed, fakes, autograd and dispatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import opaque
from ..backend import FusedOp
from ..batch import check_ids, tasks_with_rows
from ..calls import arguments_of, keep, kept

__all__ = [
    "LINEAR",
    "OP",
    "Backward",
    "Forward",
    "LinearBackward",
    "LinearForward",
    "empty_gradients",
    "empty_low",
    "forward_op",
    "linear_op",
]

OP = FusedOp("grouped_lora")
LINEAR = FusedOp("lora_linear")
Gradients = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]


class Forward(NamedTuple):
    """Arguments of grouped_lora. It returns out and low, ``drop(x) A_tᵀ``, for the backward.

    Attributes:
        x: [B, ..., Din].
        y: [B, ..., O] to add to, or ``None``.
        a: One [R, Din] a task.
        b: One [O, R] a task.
        learned: Learned factors of the scales, one element a task, or none.
        scale: One number a task.
        ids: int64 [B]; ``None``: all rows have task 0.
        dropout: Probability of dropping an element of x.
        seed: int64 [1], or ``None`` for no dropout.
        save: Whether a backward may follow.
    """

    x: Tensor
    y: Tensor | None
    a: list[Tensor]
    b: list[Tensor]
    learned: list[Tensor]
    scale: list[float]
    ids: Tensor | None
    dropout: float
    seed: Tensor | None
    save: bool


class Backward(NamedTuple):
    """Arguments of its backward: the gradient of out, what the forward was given, and needs: of x, a, b, learned."""

    grad: Tensor
    x: Tensor
    low: Tensor
    a: list[Tensor]
    b: list[Tensor]
    learned: list[Tensor]
    scale: list[float]
    ids: Tensor | None
    dropout: float
    seed: Tensor | None
    needs: list[bool]


class LinearForward(NamedTuple):
    """Arguments of lora_linear: those of grouped_lora, with weight [O, Din] and bias [O] in place of y."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    a: list[Tensor]
    b: list[Tensor]
    learned: list[Tensor]
    scale: list[float]
    ids: Tensor | None
    dropout: float
    seed: Tensor | None
    save: bool

    def update(self, y: Tensor | None) -> Forward:
        """The call of grouped_lora that adds the update to ``y``."""
        return Forward(self.x, y, *self[3:])


class LinearBackward(NamedTuple):
    """Arguments of its backward, which leaves the gradients of weight and bias to torch."""

    grad: Tensor
    x: Tensor
    low: Tensor
    weight: Tensor
    a: list[Tensor]
    b: list[Tensor]
    learned: list[Tensor]
    scale: list[float]
    ids: Tensor | None
    dropout: float
    seed: Tensor | None
    needs: list[bool]

    def update(self) -> Backward:
        """The call of grouped_lora's backward."""
        return Backward(self.grad, self.x, self.low, *self[4:])


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


def _kernel(*args: Any) -> tuple[Tensor, Tensor]:
    call = Forward(*args)
    if OP.running is None:  # the public function has looked at them
        check_ids("grouped_lora", call.ids, len(call.a))
    return (OP.running or OP.select(call.x.device.type, call.x.dtype)).forward(*args)


def _backward_kernel(grad: Tensor, x: Tensor, *args: Any) -> Gradients:
    return (OP.running or OP.select(x.device.type, x.dtype)).backward(grad, x, *args)


def _linear_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    call = LinearForward(*args)
    if LINEAR.running is None:  # the public function has looked at them
        check_ids("lora_linear", call.ids, len(call.a))
    return (LINEAR.running or LINEAR.select(call.x.device.type, call.x.dtype)).forward(*args)


def _linear_backward_kernel(grad: Tensor, x: Tensor, *args: Any) -> Gradients:
    return (LINEAR.running or LINEAR.select(x.device.type, x.dtype)).backward(grad, x, *args)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = Forward(*args)
    return call.x.new_empty(*call.x.shape[:-1], call.b[0].shape[0]), empty_low(call.x, call.a, call.save)


def _backward_fake(*args: Any) -> Gradients:
    call = Backward(*args)
    return empty_gradients(call.x, call.a, call.b, call.learned, call.needs)


def _linear_fake(*args: Any) -> tuple[Tensor, Tensor]:
    return _fake(*LinearForward(*args).update(None))


def _linear_backward_fake(*args: Any) -> Gradients:
    return _backward_fake(*LinearBackward(*args).update())


def _per_task(gradients: list[Tensor], needs: Sequence[Any], ids: Tensor | None) -> list[Tensor | None]:
    """``None`` where no gradient was asked for, and for tasks without a row: those must not move, not even by decay."""
    present = tasks_with_rows(ids, len(gradients))
    return [g if need and here else None for g, need, here in zip(gradients, needs, present, strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, *lora, _ = inputs
    _keep(ctx, OP, lora, x=x, low=output[1])


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, *lora, _ = inputs
    _keep(ctx, LINEAR, lora, x=x, low=output[1], weight=weight)


def _keep(ctx: Any, op: FusedOp, lora: list[Any], **tensors: Tensor) -> None:
    a, b, learned, scale, ids, dropout, seed = lora
    keep(ctx, **tensors, a=a, b=b, learned=learned, scale=scale, ids=ids, dropout=dropout, seed=seed)
    ctx.chosen = op.running
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    need = Forward(*ctx.needs_input_grad)
    wanted = [need.x, any(need.a), any(need.b), any(need.learned)]
    dx, (da, db, dl) = None, ([None] * len(n) for n in (need.a, need.b, need.learned))
    if grad is not None and any(wanted):
        call = Backward(grad=grad, needs=wanted, **kept(ctx))
        dx, da, db, dl = OP.run(ctx.chosen, _backward_op, *call)
        da, db, dl = (_per_task(g, n, call.ids) for g, n in ((da, need.a), (db, need.b), (dl, need.learned)))
    return (dx if need.x else None, grad if need.y else None, da, db, dl, *(None,) * 5)


def _linear_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    need = LinearForward(*ctx.needs_input_grad)
    wanted = [need.x, any(need.a), any(need.b), any(need.learned)]
    dx, (da, db, dl) = None, ([None] * len(n) for n in (need.a, need.b, need.learned))
    if grad is None:
        return (None, None, None, da, db, dl, *(None,) * 5)
    call = LinearBackward(grad=grad, needs=wanted, **kept(ctx))
    if any(wanted):
        dx, da, db, dl = LINEAR.run(ctx.chosen, _linear_backward_op, *call)
        da, db, dl = (_per_task(g, n, call.ids) for g, n in ((da, need.a), (db, need.b), (dl, need.learned)))
    rows = grad.flatten(0, -2)
    return (
        dx if need.x else None,
        rows.t() @ call.x.flatten(0, -2) if need.weight else None,
        rows.sum(0) if need.bias else None,
        da,
        db,
        dl,
        *(None,) * 5,
    )


_RESULTS = "(Tensor out, Tensor low)"
_GRADIENTS = "(Tensor grad_x, Tensor[] grad_a, Tensor[] grad_b, Tensor[] grad_learned)"

forward_op = opaque.define(
    "grouped_lora",
    f"({arguments_of(Forward)}) -> {_RESULTS}",
    _kernel,
    _fake,
    setup_context=_setup,
    backward=_backward,
)
_backward_op = opaque.define(
    "grouped_lora_backward",
    f"({arguments_of(Backward)}) -> {_GRADIENTS}",
    _backward_kernel,
    _backward_fake,
    autocast=False,
)
linear_op = opaque.define(
    "lora_linear",
    f"({arguments_of(LinearForward)}) -> {_RESULTS}",
    _linear_kernel,
    _linear_fake,
    setup_context=_linear_setup,
    backward=_linear_backward,
)
_linear_backward_op = opaque.define(
    "lora_linear_backward",
    f"({arguments_of(LinearBackward)}) -> {_GRADIENTS}",
    _linear_backward_kernel,
    _linear_backward_fake,
    autocast=False,
)
