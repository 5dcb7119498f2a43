"""frozen_linear through Triton: the weight in the type that is multiplied, read as it lies in memory."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
from torch import Tensor

from ..triton.rows import precision
from ..triton.shared import fitting
from ..triton.tables import aligned
from .int8_dynamic import DYNAMIC, quantised
from .reference import int8_scale
from .triton_configs import config, int8_config

__all__ = ["backward", "forward", "panels", "supports"]

_NARROW = ("bfloat16", "int8")


def supports(*, device: str, dtype: torch.dtype, packed: bool, torch_is_as_fast: bool) -> str | None:
    """Why the Triton product cannot serve the call; ``None`` when it can."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no product for {dtype}"
    if torch_is_as_fast:
        return "float32 weights are left to torch's own product"
    return None if packed else "the weight is not packed for this device"


def panels(weight: Tensor, kind: str, outliers: Tensor | None = None) -> Tensor:
    """What the kernel reads, [O, Din]: the weight itself, its bfloat16 rounding, or int8 numbers (see `int8_scale`)."""
    weight = weight.detach()
    if kind == DYNAMIC:
        return quantised(weight, outliers)[0].contiguous()
    if kind == "int8":
        scale = int8_scale(weight)[:, None]
        return torch.where(scale > 0, (weight.float() / scale).round().clamp(-127, 127), 0.0).to(torch.int8)
    return aligned(weight.to(torch.bfloat16) if kind == "bfloat16" else weight)


def forward(
    x: Tensor, weight: Tensor, panels: Tensor, panels_t: Tensor | None, scale: Tensor | None, bias: Tensor | None,
    kind: str, activation: int, outliers: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``activation((x W^T) * scale + bias)`` [..., O]."""
    if kind == DYNAMIC:
        assert scale is not None
        return _int8_product(x, weight, panels, scale, outliers, bias, activation)
    return _product(x, panels, weight.shape, (weight.shape[1], 1), scale, bias, kind, activation)


def backward(grad: Tensor, weight: Tensor, panels: Tensor, kind: str, outliers: Tensor | None = None) -> Tensor:
    """``grad W`` [..., Din]; an int8 weight's scale is already in ``grad``."""
    kind = "int8" if kind == DYNAMIC else kind
    return _product(grad, panels, weight.shape[::-1], (1, weight.shape[1]), None, None, kind, 0)


def _product(
    x: Tensor, panels: Tensor, shape: torch.Size, strides: tuple[int, int], scale: Tensor | None, bias: Tensor | None,
    kind: str, activation: int,
) -> Tensor:  # fmt: skip
    import triton

    from .triton_kernels import frozen_linear_kernel

    outputs, inputs = shape
    rows = aligned(x.reshape(-1, inputs))
    out = rows.new_empty(rows.shape[0], outputs)
    narrow = kind in _NARROW
    launches = [config(panels.element_size() if narrow else rows.element_size())]
    launch = fitting("frozen_linear_kernel", x.device, launches, x.dtype, panels.dtype)
    if out.numel():
        frozen_linear_kernel[(triton.cdiv(len(rows), launch["BM"]), triton.cdiv(outputs, launch["BN"]))](
            rows, panels, rows if scale is None else scale, rows if bias is None else bias.contiguous(), out, len(rows),
            inputs, outputs, rows.stride(0), *strides, ACT=activation, SCALE=scale is not None, BIAS=bias is not None,
            NARROW=narrow, PRECISION=precision(rows.dtype), **launch,
        )  # fmt: skip
    return out.view(*x.shape[:-1], outputs)


def _int8_product(
    x: Tensor, weight: Tensor, panels: Tensor, scale: Tensor, outliers: Tensor | None, bias: Tensor | None,
    activation: int,
) -> Tensor:  # fmt: skip
    import triton

    from .triton_int8_kernels import int8_linear_kernel

    outputs, inputs = panels.shape
    rows = aligned(x.reshape(-1, inputs))
    out = rows.new_empty(rows.shape[0], outputs)
    launch = fitting("int8_linear_kernel", x.device, [int8_config()], x.dtype, panels.dtype)
    columns = kept = plain = panels
    if outliers is not None:
        columns, kept = outliers, weight[:, outliers].float().t().contiguous()
        plain = panels.new_ones(inputs).index_fill_(0, outliers, 0)
    if out.numel():
        int8_linear_kernel[(triton.cdiv(len(rows), launch["BM"]), triton.cdiv(outputs, launch["BN"]))](
            rows, panels, scale, rows if bias is None else bias.contiguous(), plain, columns, kept, out, len(rows),
            inputs, outputs, 0 if outliers is None else len(outliers), rows.stride(0), ACT=activation,
            BIAS=bias is not None, KEPT=outliers is not None, **launch,
        )  # fmt: skip
    return out.view(*x.shape[:-1], outputs)
