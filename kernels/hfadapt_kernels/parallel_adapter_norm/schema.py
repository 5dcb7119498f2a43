"""``hfadapt::parallel_adapter_norm`` and its backward: what backends are handed, fakes, autograd and dispatch."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..backend import FusedOp
from ..batch import check_ids, tasks_with_rows
from ..calls import arguments_of, keep, kept
from ..errors import KernelError
from ..opaque import define
from .checks import NAME
from .saved import (
    NEED_DOWN,
    NEED_DOWN_BIAS,
    NEED_H,
    NEED_NORM_BIAS,
    NEED_NORM_WEIGHT,
    NEED_SCALE,
    NEED_UP,
    NEED_UP_BIAS,
    empty_grads,
    saved_shapes,
    stat_dtype,
)

__all__ = ["OP", "Backward", "Forward", "forward_op"]

OP = FusedOp(NAME)


class Forward(NamedTuple):
    """Arguments of the forward. It returns out, and z, pre, mean and rstd for the backward.

    Attributes:
        x: [B, ..., D], to which the delta is added.
        residual: As x, or ``None``.
        h: [B, ..., Dh], what the bottleneck reads.
        down: One [R, Dh] a task.
        up: One [D, R] a task.
        down_bias: One [R] a task, or none.
        up_bias: One [D] a task, or none.
        scale: Learned scales, one [1] or [D] a task, or none.
        scale_values: One number a task, where no scale is learned.
        norm_weight: [D].
        norm_bias: [D].
        ids: int64 [B]; ``None``: all rows have task 0.
        seed: int64 [1], or ``None`` for no dropout.
        activation: Code of an activation.
        norm: 0 none, 1 LayerNorm, 2 RMSNorm.
        eps: Added to the variance, or to the mean square.
        norm_offset: Added to ``norm_weight``.
        dropout: Probability of dropping an element of the bottleneck.
        save: Whether a backward may follow.
    """

    x: Tensor
    residual: Tensor | None
    h: Tensor
    down: list[Tensor]
    up: list[Tensor]
    down_bias: list[Tensor]
    up_bias: list[Tensor]
    scale: list[Tensor]
    scale_values: list[float]
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    ids: Tensor | None
    seed: Tensor | None
    activation: int
    norm: int
    eps: float
    norm_offset: float
    dropout: float
    save: bool


class Backward(NamedTuple):
    """Arguments of the backward; what `Forward` has too is the same.

    It returns dz, dh and grads: of each task down, up, down_bias, up_bias and scale, then norm_weight and norm_bias;
    what is not needed is empty.

    Attributes:
        grad: Gradient of out.
        z: What was normalised, [B, ..., D]; empty without a norm.
        pre: The bottleneck before its activation, [rows, largest R].
        mean: Of the rows of z.
        rstd: Of the rows of z.
        needs: Bits of ``NEED_*``.
    """

    grad: Tensor
    z: Tensor
    pre: Tensor
    mean: Tensor
    rstd: Tensor
    h: Tensor
    down: list[Tensor]
    up: list[Tensor]
    up_bias: list[Tensor]
    scale: list[Tensor]
    scale_values: list[float]
    norm_weight: Tensor | None
    ids: Tensor | None
    seed: Tensor | None
    activation: int
    norm: int
    norm_offset: float
    dropout: float
    needs: int


_SHARED = [name for name in Backward._fields if name in Forward._fields]
# What autograd is given where no gradient came: an entry an argument, in the tuple for its names alone.
_NO_GRADIENTS = Forward(*(None,) * len(Forward._fields))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def _forward_kernel(*args: Any) -> tuple[Tensor, ...]:
    call = Forward(*args)
    if OP.running is None:  # the public function has looked at them
        check_ids(NAME, call.ids, len(call.down))
    return (OP.running or OP.select(call.x.device.type, call.x.dtype)).forward(*args)


def _backward_kernel(grad: Tensor, *args: Any) -> tuple[Any, ...]:
    return (OP.running or OP.select(grad.device.type, grad.dtype)).backward(grad, *args)


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    call = Forward(*args)
    x = call.x
    z, pre, stats = saved_shapes(x, call.down, call.norm, call.save)
    mean, rstd = (x.new_empty(stats, dtype=stat_dtype(x)) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(z), x.new_empty(pre), mean, rstd


def _backward_fake(*args: Any) -> tuple[Any, ...]:
    call = Backward(*args)
    return empty_grads(call.grad, call.h, call.down, call.up, call.scale, call.norm, call.needs)


_backward_op = define(
    f"{NAME}_backward",
    f"({arguments_of(Backward)}) -> (Tensor dz, Tensor dh, Tensor[] grads)",
    _backward_kernel,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call = Forward(*inputs)
    _, z, pre, mean, rstd = output
    ctx.mark_non_differentiable(z, pre, mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.chosen, ctx.saved = OP.running, call.save
    keep(ctx, z=z, pre=pre, mean=mean, rstd=rstd, **{name: getattr(call, name) for name in _SHARED})


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need = Forward(*ctx.needs_input_grad)
    lists = {name: [None] * len(getattr(need, name)) for name in ("down", "up", "down_bias", "up_bias", "scale")}
    if grad is None:
        return _NO_GRADIENTS._replace(**lists)  # type: ignore[arg-type]
    if not ctx.saved:
        raise KernelError(
            NAME,
            "save",
            expected="True, to be differentiated",
            got="False",
            hint="Call hfadapt_kernels.parallel_adapter_norm, which saves what a gradient needs.",
        )
    wanted = {
        NEED_H: need.h, NEED_DOWN: any(need.down), NEED_UP: any(need.up), NEED_DOWN_BIAS: any(need.down_bias),
        NEED_UP_BIAS: any(need.up_bias), NEED_SCALE: any(need.scale), NEED_NORM_WEIGHT: need.norm_weight,
        NEED_NORM_BIAS: need.norm_bias,
    }  # fmt: skip
    needs = sum(bit for bit, flag in wanted.items() if flag)
    call = Backward(grad=grad.contiguous(), needs=needs, **kept(ctx))
    dz, dh, grads = OP.run(ctx.chosen, _backward_op, *call)
    present = tasks_with_rows(call.ids, len(call.down))
    for kind, (name, bit) in enumerate(
        zip(lists, (NEED_DOWN, NEED_UP, NEED_DOWN_BIAS, NEED_UP_BIAS, NEED_SCALE), strict=True)
    ):
        if needs & bit:
            lists[name] = [grads[5 * t + kind] if present[t] else None for t in range(len(lists[name]))]
    dx = dz if call.norm else grad
    return _NO_GRADIENTS._replace(
        x=dx if need.x else None,
        residual=dx if need.residual else None,
        h=dh if need.h else None,
        norm_weight=grads[-2] if need.norm_weight else None,
        norm_bias=grads[-1] if need.norm_bias else None,
        **lists,
    )


forward_op = define(
    NAME,
    f"({arguments_of(Forward)}) -> (Tensor out, Tensor z, Tensor pre, Tensor mean, Tensor rstd)",
    _forward_kernel,
    _forward_fake,
    setup_context=_save,
    backward=_gradient,
)
