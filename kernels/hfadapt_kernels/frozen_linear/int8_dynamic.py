"""Products of int8 with int8 in plain PyTorch: the rows of x are rounded as they come, one scale a row.

The numbers are the same wherever they are made, bit for bit (an activation's own aside): integers are exact, and what
is done with them in float32 is a fixed sequence of roundings. To round rows as they come is known as dynamic
quantisation (torch's ``quantize_dynamic``, there with one scale for all rows). A scale a row, and columns that stay
exact, are those of "LLM.int8()" (Dettmers et al. 2022, arXiv:2208.07339); the columns are found from the weight alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DYNAMIC", "MOST_INPUTS", "dynamic_product", "int8_scale", "outlier_columns", "quantised"]

DYNAMIC = "int8_dynamic"
#: Of products of at most 127 * 127, int32 holds the sum of so many.
MOST_INPUTS = (2**31 - 1) // 127**2
#: A row whose largest number is smaller is rounded as if it were this: what it is divided by stays a normal number.
_LEAST = 2.0**-100
#: A column is kept in float32 where its root mean square is so many times the median column's ...
_FAR = 4.0
#: ... but of so many columns one at most, the largest.
_ONE_OF = 32


def int8_scale(weight: Tensor) -> Tensor:
    """Symmetric scale of each output row: ``max|w| / 127``, float32 [O]."""
    return (
        weight.detach().float().abs().amax(dim=1) / 127.0 if weight.shape[1] else weight.new_zeros(len(weight)).float()
    )


def outlier_columns(weight: Tensor) -> Tensor | None:
    """Inputs whose weights would cost all others their accuracy; int64 [n], ascending, or ``None``.

    The scale of an output follows its largest weight. A column whose weights are far larger than all others' takes the
    digits of every one of them: it is multiplied in float32 instead. It is one whose root mean square over the outputs
    is more than 4 times that of the median column; of 32 columns one at most is kept, the largest first.
    """
    size = weight.detach().double().square().mean(0)
    if not size.numel() or not size.median() > 0:
        return None
    found = (size > _FAR**2 * size.median()).nonzero().flatten()
    most = weight.shape[1] // _ONE_OF
    if len(found) > most:
        found = found[size[found].argsort(descending=True, stable=True)[:most]].sort().values
    return found if len(found) else None


def quantised(weight: Tensor, outliers: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the int8 numbers [O, Din], 0 in the columns ``outliers``, and their scale, float32 [O]."""
    w = weight.detach().float()
    if outliers is not None:
        w = w.index_fill(1, outliers, 0.0)
    scale = int8_scale(w)
    near = torch.where(scale[:, None] > 0, (w / scale[:, None]).round(), 0.0)
    return near.nan_to_num(0.0).clamp(-127, 127).to(torch.int8), scale


def dynamic_product(x: Tensor, weight: Tensor, outliers: Tensor | None, bias: Tensor | None) -> Tensor:
    """``x W^T + bias`` [..., O] in float32, x rounded to int8 row by row, W as `quantised` leaves it.

    A row of x is ``q * s`` with ``s = max|x| / 127`` and ``q = round(x * (127 / max|x|))``, ties to even; columns that
    are outliers take no part in it. A row that holds NaN or infinity gives NaN. ``float(sum of q q') * (s s')`` is
    rounded after each operation; then comes what the outliers add, summed in float64 and rounded, and the bias.

    Args:
        x: [..., Din].
        weight: [O, Din].
        outliers: What `outlier_columns` gave for it.
        bias: [O], or None.
    """
    q, scale = quantised(weight, outliers)
    rows = x.detach().float()
    inner = rows if outliers is None else rows.index_fill(-1, outliers, 0.0)
    size = inner.abs().amax(-1, keepdim=True) if inner.shape[-1] else inner.new_zeros(*inner.shape[:-1], 1)
    whole, size = size.isfinite(), size.clamp_min(_LEAST)
    most = torch.full_like(size, 127.0)  # a tensor: a division by a plain number may be made a multiplication
    near = torch.where(whole, (inner * (most / size)).round(), 0.0)
    # In float64 the sum is the exact integer, in whatever order it is made.
    total = (near.double() @ q.double().t()).float()
    y = total * (torch.where(whole, size / most, float("nan")) * scale)
    if outliers is not None:
        more = torch.zeros_like(y, dtype=torch.float64)
        for column in outliers.tolist():
            more += rows[..., column, None].double() * weight[:, column].detach().float().double()
        y = y + more.float()
    return y if bias is None else y + bias.detach().float()
