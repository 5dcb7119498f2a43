"""The public functions `grouped_lora` and `lora_linear`: argument checks and the choice of the path."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import opaque
from ..arguments import require_tensors
from ..backend import FusedOp
from ..batch import TaskBatch
from ..dropout import check_probability, choose_dropout
from ..errors import ShapeError
from ..frozen_linear import PackedLinear, frozen_linear
from ..misfits import described
from . import cpu, fallback, triton
from .at_once import at_once
from .checks import check_arguments, split_scale
from .reference import grouped_lora_reference, lora_linear_reference
from .schema import LINEAR, OP, Forward, LinearForward, forward_op, linear_op

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["grouped_lora", "lora_linear"]

OP.register("triton", triton.forward, triton.backward, triton.supports)
OP.register("cpu", cpu.forward, cpu.backward, cpu.supports)
OP.register("reference", fallback.forward, fallback.backward)
LINEAR.register("triton", triton.linear_forward, triton.linear_backward, triton.supports)
LINEAR.register("cpu", cpu.linear_forward, cpu.linear_backward, cpu.supports)
LINEAR.register("reference", fallback.linear_forward, fallback.linear_backward)

Scale = float | Sequence[float] | Sequence[Tensor]


def grouped_lora(
    x: Float[Tensor, "B *T Din"],
    a: Sequence[Float[Tensor, "_R Din"]],
    b: Sequence[Float[Tensor, "O _R"]],
    scale: Scale,
    batch: TaskBatch,
    *,
    y: Float[Tensor, "B *T O"] | None = None,
    dropout: float = 0.0,
    training: bool = False,
    seed: Int[Tensor, " 1"] | None = None,
) -> Float[Tensor, "B *T O"]:
    """``y + s_t (drop(x) A_tᵀ) B_tᵀ`` where every row has its own task t (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    The product is accumulated in float32. Weights may be views with any strides (slices of a fused projection,
    transposes of a ``Conv1D``). Ranks and scales may differ between tasks.

    Args:
        x: [B, ..., Din].
        a: One [R, Din] a task.
        b: One [O, R] a task.
        scale: One number for all tasks, one a task, or one tensor of one element a task (then it has a gradient).
        batch: Task of every row; a row with id -1 gets ``y`` bit for bit, or zeros.
        y: [B, ..., O] to add to; it is not changed.
        dropout: Probability of dropping an element of x; used when ``training``.
        training: Whether dropout is on.
        seed: int64 [1] that fixes the dropout mask; drawn from torch's generator when needed and ``None``.

    Returns:
        [B, ..., O] in the dtype of ``y``, or of x and the weights (promoted) without it.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        RowIdError: A task id is out of range.
        BackendError: A backend asked for by name cannot run.
    """
    if not (training and dropout) and (done := at_once(x, y, a, b, scale, batch)) is not None:
        return done
    require_tensors("grouped_lora", ("y?",), y)
    down, up, learned, numbers = _prepare("grouped_lora", a, b, scale, batch, x, dropout)
    x, down, up, learned, base = opaque.autocast_inputs(x.device.type, x, down, up, learned, y)
    x, down, up = _promote(x, down, up)
    check_arguments("grouped_lora", x, base, down, up, batch)
    if batch.num_tasks == 0:
        return x.new_zeros(x.shape) if base is None else base.clone()
    # A base of another dtype (a bfloat16 model with float32 updates) keeps its dtype.
    inside = base if base is None or base.dtype == x.dtype else None
    rest = (learned, numbers, batch.op_ids, *choose_dropout("grouped_lora", dropout, training, seed, x.device))
    call = Forward(x, inside, down, up, *rest, _wants_gradient(x, down, up, learned))
    chosen = None if torch.compiler.is_compiling() else _select(OP, x)
    if chosen is None:
        out, _ = forward_op(*call)
    elif chosen.backend == "reference":
        out = grouped_lora_reference(*call[:-1])
    else:
        out, _ = OP.run(chosen, forward_op, *call)
    return out if base is None or inside is base else base + out.to(base.dtype)


def lora_linear(
    x: Float[Tensor, "B *T Din"],
    weight: Float[Tensor, "O Din"] | PackedLinear,
    bias: Float[Tensor, " O"] | None,
    a: Sequence[Float[Tensor, "_R Din"]],
    b: Sequence[Float[Tensor, "O _R"]],
    scale: Scale,
    batch: TaskBatch,
    *,
    dropout: float = 0.0,
    training: bool = False,
    seed: Int[Tensor, " 1"] | None = None,
) -> Float[Tensor, "B *T O"]:
    """``x Wᵀ + bias`` plus the update of `grouped_lora` in one op: the update is added where the product stands.

    Args:
        x: [B, ..., Din].
        weight: [O, Din]; has a gradient when it requires one. Or a frozen weight that is packed already.
        bias: [O] or ``None``.
        a: See `grouped_lora`, as all that follow.
        b: See `grouped_lora`.
        scale: See `grouped_lora`.
        batch: See `grouped_lora`.
        dropout: See `grouped_lora`; the base product sees all of x.
        training: See `grouped_lora`.
        seed: See `grouped_lora`.

    Returns:
        [B, ..., O] in the dtype of x.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        RowIdError: A task id is out of range.
        BackendError: A backend asked for by name cannot run.
    """
    require_tensors("lora_linear", ("bias?",), bias)
    if isinstance(weight, PackedLinear):
        return _packed(x, weight, bias, a, b, scale, batch, dropout, training, seed)
    require_tensors("lora_linear", ("weight",), weight)
    down, up, learned, numbers = _prepare("lora_linear", a, b, scale, batch, x, dropout)
    base: Tensor
    x, base, bias, down, up, learned = opaque.autocast_inputs(x.device.type, x, weight, bias, down, up, learned)
    if batch.num_tasks == 0 or any(t.dtype != x.dtype for t in (*down, *up)):
        y = torch.nn.functional.linear(x, base, bias)
        scales = [t * n for t, n in zip(learned, numbers, strict=True)] if learned else numbers
        return grouped_lora(x, down, up, scales, batch, y=y, dropout=dropout, training=training, seed=seed)
    check_arguments("lora_linear", x, None, down, up, batch)
    _check_base(x, base, bias, up[0])
    rest = (learned, numbers, batch.op_ids, *choose_dropout("lora_linear", dropout, training, seed, x.device))
    call = LinearForward(x, base, bias, down, up, *rest, _wants_gradient(x, down, up, learned))
    if torch.compiler.is_compiling():
        return linear_op(*call)[0]
    chosen = _select(LINEAR, x)
    if chosen.backend == "reference":
        return lora_linear_reference(*call[:-1])
    return LINEAR.run(chosen, linear_op, *call)[0]


def _packed(
    x: Tensor,
    weight: PackedLinear,
    bias: Tensor | None,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scale: Scale,
    batch: TaskBatch,
    dropout: float,
    training: bool,
    seed: Tensor | None,
) -> Tensor:
    """`lora_linear` on a packed base; without gradients the update is added where the base product stands."""
    require_tensors("lora_linear", ("x", "a", "b", "batch"), x, a, b, batch)
    (x,) = opaque.autocast_inputs(x.device.type, x)
    y = frozen_linear(x, weight, bias)
    alone = not (torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type))
    same = all(t.dtype == x.dtype for t in (*a, *b)) and x.dtype in (torch.float32, torch.bfloat16)
    if not (alone and same and batch.num_tasks and _select(OP, x).backend == "cpu"):
        return grouped_lora(x, a, b, scale, batch, y=y, dropout=dropout, training=training, seed=seed)
    a, b, learned, numbers = _prepare("lora_linear", a, b, scale, batch, x, dropout)
    check_arguments("lora_linear", x, y, a, b, batch)
    chosen = choose_dropout("lora_linear", dropout, training, seed, x.device)
    cpu.add_in_place(Forward(x, y, a, b, learned, numbers, batch.op_ids, *chosen, save=False))
    return y


def _prepare(
    op: str, a: Sequence[Tensor], b: Sequence[Tensor], scale: Scale, batch: TaskBatch, x: Tensor, dropout: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[float]]:
    require_tensors(op, ("x", "a", "b", "batch"), x, a, b, batch)
    check_probability(op, dropout)
    batch.check(op, x.device)
    return list(a), list(b), *split_scale(op, scale, batch.num_tasks, x)


def _promote(x: Tensor, a: list[Tensor], b: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    dtypes = {weight.dtype for weight in (*a, *b)}
    if dtypes <= {x.dtype}:  # `to` costs a call also where it changes nothing, and there are two weights for each task
        return x, a, b
    dtype = functools.reduce(torch.promote_types, dtypes, x.dtype)
    return x.to(dtype), [w.to(dtype) for w in a], [w.to(dtype) for w in b]


def _check_base(x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor) -> None:
    shape = (up.shape[0], x.shape[-1])
    fits = weight.shape == shape and weight.dtype == x.dtype and weight.device == x.device
    if not fits or (bias is not None and (bias.shape != shape[:1] or bias.device != x.device)):
        got = f"{described(weight)}, bias {None if bias is None else f'{list(bias.shape)} on {bias.device}'}"
        wanted = f"{x.dtype} {list(shape)} and [{shape[0]}], both on {x.device}"
        hint = f"Use the weight and bias of the linear that reads x; its O is b's, {shape[0]}."
        if tuple(weight.shape) == shape[::-1] != shape:
            hint = "Use weight.T: the weight is [O, Din]."
        elif weight.shape == shape and (weight.dtype, weight.device) != (x.dtype, x.device):
            hint = f"Use weight.to({str(x.device)!r}, {x.dtype})."
        elif bias is not None and fits and bias.shape == shape[:1]:
            hint = f"Use bias.to({str(x.device)!r})."
        raise ShapeError("lora_linear", "weight or bias", expected=wanted, got=got, hint=hint)


def _wants_gradient(x: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], learned: list[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *a, *b, *learned))


def _select(op: FusedOp, x: Tensor) -> Any:
    return op.select(x.device.type, x.dtype)
