"""Computing every row as if it were alone: its bits must not depend on its neighbours, nor on how many share its task.

torch's products choose their algorithm, and with it the order of their sums, by the number of rows; the last elements
of an element-wise function go through other code than the rest (a scalar exponential in place of a vector's). Both move
when a batch holds another number of rows of a task. The C++ kernels sum in one fixed order. What runs through torch on
a CPU is cut here, so that every product and every function sees one row of the batch at a time.

On other devices, and in a traced graph, all rows are computed together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropout import keep_scale
from .misfits import misfit

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

__all__ = ["drop_rows", "row_linear", "rowwise"]

# What torch allocates begins at a multiple of this; a product may take another path where its operand does not.
_ALIGNMENT = 64


def _one_by_one(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.shape[0] > 0 and not torch.compiler.is_compiling()


def _aligned(row: Tensor) -> Tensor:
    """``row``, copied where it begins elsewhere than a tensor of its own would."""
    return row.clone() if row.data_ptr() % _ALIGNMENT else row


def rowwise(fn: Callable[..., Tensor], *tensors: Shaped[Tensor, "B ..."] | None) -> Shaped[Tensor, "B ..."]:
    """``fn(*tensors)``, computed for each row of the batch alone.

    Args:
        fn: Takes the tensors with a batch of one row and returns a tensor of one row.
        tensors: Each ``[B, ...]``; None is handed on.

    Returns:
        The rows' results, ``[B, ...]``.
    """
    if not _one_by_one(next(t for t in tensors if t is not None)):
        return fn(*tensors)
    columns: list[Any] = [t if t is None else t.split(1) for t in tensors]
    count = next(len(c) for c in columns if c is not None)
    return torch.cat([fn(*(None if c is None else _aligned(c[row]) for c in columns)) for row in range(count)])


def row_linear(
    x: Float[Tensor, "B *T Din"], weight: Float[Tensor, "O Din"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "B *T O"]:
    """``x W^T + bias`` as ``torch.nn.functional.linear``, each row of the batch in a product of its own.

    The gradient of x is computed alike. Those of weight and bias sum over all rows, in one product.

    Args:
        x: ``[B, ..., Din]``.
        weight: ``[O, Din]``.
        bias: ``[O]`` or None.

    Returns:
        ``[B, ..., O]``.

    Raises:
        ShapeError: the weight is on another device.
    """
    if not _one_by_one(x):
        return F.linear(x, weight, bias)
    if weight.device != x.device:  # torch's own product on a CPU reads what is on meta as if it held numbers
        raise misfit("row_linear", "weight", weight, ["O", x.shape[-1]], x, "Load it anew: meta holds no numbers.")
    return _RowLinear.apply(x, weight, bias)


class _RowLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.cat([F.linear(_aligned(row), weight, bias) for row in x.split(1)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # Of functions that torch differentiates: the reference has gradients of gradients.
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        return (
            row_linear(grad, weight.t()) if need_x else None,
            flat.t() @ x.reshape(-1, x.shape[-1]) if need_weight else None,
            flat.sum(0) if need_bias else None,
        )


def drop_rows(
    x: Float[Tensor, "b *T S"], p: float, seed: Int[Tensor, " 1"] | None, rows: Int[Tensor, " b"], stream: int = 0
) -> Float[Tensor, "b *T S"]:
    """Dropout whose mask hangs on a row's place in the whole batch, not on which rows are computed with it.

    Args:
        x: ``[b, ..., S]``, some rows of the batch.
        p: Probability of dropping an element.
        seed: int64 [1], or None for no dropout.
        rows: int64 ``[b]``, the rows' places in the batch.
        stream: Tells places apart that share a seed.
    """
    if seed is None or p == 0.0:
        return x
    inside = torch.arange(x[0].numel() // max(x.shape[-1], 1) if x.shape[0] else 0, device=x.device)
    lines = rows.view(-1, 1) * inside.numel() + inside
    columns = torch.arange(x.shape[-1], device=x.device) + (stream << 20)
    keep = keep_scale(seed, lines.view(*x.shape[:-1], 1), columns, p, x.dtype)
    return x if keep is None else x * keep
