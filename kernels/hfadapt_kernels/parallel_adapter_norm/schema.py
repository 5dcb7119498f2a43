"""``hfadapt::parallel_adapter_norm`` and its backward: schemas, fakes, autograd and dispatch to the backends."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backend import FusedOp
from ..batch import check_ids, tasks_with_rows
from ..errors import KernelError
from ..opaque import define
from . import cpu, eager, triton
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

__all__ = ["OP", "forward_op"]

OP = FusedOp(NAME)
OP.register("reference", eager.forward, eager.backward)
OP.register("cpu", cpu.forward, cpu.backward, cpu.supports)
OP.register("triton", triton.forward, triton.backward, triton.supports)

_SHARED = (
    "Tensor[] scale, float[] scale_values, Tensor? norm_weight, {norm_bias}Tensor? ids, Tensor? seed, int activation, "
    "int norm, {eps}float norm_offset, float dropout"
)
_FORWARD = (
    "(Tensor x, Tensor? residual, Tensor h, Tensor[] down, Tensor[] up, Tensor[] down_bias, Tensor[] up_bias, "
    + _SHARED.format(norm_bias="Tensor? norm_bias, ", eps="float eps, ")
    + ", bool save) -> (Tensor out, Tensor z, Tensor pre, Tensor mean, Tensor rstd)"
)
# needs: bits of NEED_*. grads: for each task down, up, down_bias, up_bias, scale; then norm_weight and norm_bias; an
# empty tensor stands for one that is not needed.
_BACKWARD = (
    "(Tensor grad, Tensor z, Tensor pre, Tensor mean, Tensor rstd, Tensor h, Tensor[] down, Tensor[] up, "
    "Tensor[] up_bias, "
    + _SHARED.format(norm_bias="", eps="")
    + ", int needs) -> (Tensor dz, Tensor dh, Tensor[] grads)"
)


def _forward_kernel(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    check_ids(NAME, args[10], len(args[2]))
    return OP.select(x.device.type, x.dtype).forward(x, *args)


def _backward_kernel(grad: Tensor, *args: Any) -> tuple[Any, ...]:
    return OP.select(grad.device.type, grad.dtype).backward(grad, *args)


def _forward_fake(
    x, residual, h, down, up, down_bias, up_bias, scale, scale_values, norm_weight, norm_bias, ids, seed, activation,
    norm, eps, norm_offset, dropout, save,
):  # type: ignore[no-untyped-def]  # fmt: skip
    z, pre, stats = saved_shapes(x, down, norm, save)
    mean, rstd = (x.new_empty(stats, dtype=stat_dtype(x)) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(z), x.new_empty(pre), mean, rstd


def _backward_fake(
    grad, z, pre, mean, rstd, h, down, up, up_bias, scale, scale_values, norm_weight, ids, seed, activation, norm,
    norm_offset, dropout, needs,
):  # type: ignore[no-untyped-def]  # fmt: skip
    return empty_grads(grad, h, down, up, scale, norm, needs)


_backward_op = define(f"{NAME}_backward", _BACKWARD, _backward_kernel, _backward_fake)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (
        _, _, h, down, up, down_bias, up_bias, scale, scale_values, norm_weight, norm_bias, ids, seed, activation, norm,
        _, norm_offset, dropout, save,
    ) = inputs  # fmt: skip
    _, z, pre, mean, rstd = output
    ctx.mark_non_differentiable(z, pre, mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.tasks = len(down)
    ctx.sizes = (len(down_bias), len(up_bias), len(scale))
    ctx.has_norm_bias = norm_bias is not None
    ctx.save_for_backward(h, *down, *up, *up_bias, *scale, norm_weight, ids, seed, z, pre, mean, rstd)
    ctx.rest = (scale_values, activation, norm, norm_offset, dropout, save)


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    nothing = (None,) * 19
    tasks, (n_down_bias, n_up_bias, n_scale) = ctx.tasks, ctx.sizes
    scale_values, activation, norm, norm_offset, dropout, save = ctx.rest
    if grad is None:
        lists = [[None] * n for n in (tasks, tasks, n_down_bias, n_up_bias, n_scale)]
        return (None, None, None, *lists, *nothing[8:])
    if not save:
        raise KernelError(NAME, "save", expected="True, to be differentiated", got="False")
    saved = list(ctx.saved_tensors)
    h, saved = saved[0], saved[1:]
    down, up, saved = saved[:tasks], saved[tasks : 2 * tasks], saved[2 * tasks :]
    up_bias, scale, saved = saved[:n_up_bias], saved[n_up_bias : n_up_bias + n_scale], saved[n_up_bias + n_scale :]
    norm_weight, ids, seed, z, pre, mean, rstd = saved
    need = ctx.needs_input_grad
    wanted = {
        NEED_H: need[2], NEED_DOWN: need[3], NEED_UP: need[4], NEED_DOWN_BIAS: need[5], NEED_UP_BIAS: need[6],
        NEED_SCALE: need[7], NEED_NORM_WEIGHT: need[9], NEED_NORM_BIAS: need[10],
    }  # fmt: skip
    needs = sum(bit for bit, flag in wanted.items() if (any(flag) if isinstance(flag, (list, tuple)) else flag))
    dz, dh, grads = _backward_op(
        grad.contiguous(), z, pre, mean, rstd, h, down, up, up_bias, scale, scale_values, norm_weight, ids, seed,
        activation, norm, norm_offset, dropout, needs,
    )  # fmt: skip
    dx = dz if norm else grad
    present = tasks_with_rows(ids, tasks)

    def of(kind: int, bit: int, count: int) -> list[Tensor | None]:
        return [grads[5 * t + kind] if needs & bit and present[t] else None for t in range(count)]

    return (
        dx if need[0] else None,
        dx if need[1] else None,
        dh if needs & NEED_H else None,
        of(0, NEED_DOWN, tasks),
        of(1, NEED_UP, tasks),
        of(2, NEED_DOWN_BIAS, n_down_bias),
        of(3, NEED_UP_BIAS, n_up_bias),
        of(4, NEED_SCALE, n_scale),
        None,
        grads[-2] if needs & NEED_NORM_WEIGHT else None,
        grads[-1] if needs & NEED_NORM_BIAS else None,
        *nothing[11:],
    )


forward_op = define(NAME, _FORWARD, _forward_kernel, _forward_fake, setup_context=_save, backward=_gradient)
