"""What inference on a processor asks for: the C++ kernel at once, which looks at every task's weights itself.

See ``grouped_lora/at_once.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..activations import get_activation
from ..cpu_tensors import as_rows, empty_result
from ..namespace import cpu_ops
from ..unchecked import kernel_alone
from .checks import NAME
from .schema import OP

__all__ = ["at_once"]


def at_once(
    x: Any, h: Any, down: Any, up: Any, batch: Any, down_bias: Any, up_bias: Any, activation: Any, scale: Any
) -> Tensor | None:
    """Return the result of `parallel_adapter_norm` without residual, norm and dropout; None where to look first.

    Args:
        x: [B, ..., D].
        h: [B, ..., Dh].
        down: One [R, Dh] a task.
        up: One [D, R] a task.
        batch: Task of every row.
        down_bias: One [R] a task, or None.
        up_bias: One [D] a task, or None.
        activation: Name of the activation.
        scale: One number a task.
    """
    biases = [one for one in (down_bias, up_bias) if one is not None]
    if not kernel_alone(OP, batch, (down, up, *biases), x, h) or type(scale) is not list:
        return None
    numbers = set(map(type, scale)) == {float} and len(scale) == batch.num_tasks and math.isfinite(sum(scale))
    if not numbers or h.shape[:-1] != x.shape[:-1] or not x.numel():
        return None
    code = get_activation(activation, NAME).code
    batch.check(NAME, x.device)
    ids = batch.op_ids
    out = empty_result(x, x.shape)
    with torch._C._AutoDispatchBelowAutograd():
        try:
            cpu_ops.parallel_adapter_norm_forward.default(
                as_rows(x).contiguous(), None, as_rows(h).contiguous(), down, up, down_bias or [], up_bias or [], [],
                scale, None, None, None if ids is None else ids.contiguous(), None, code, 0, 0.0, 0.0, 0.0,
                out.view(-1, x.shape[-1]), None, None, None, None,
            )  # fmt: skip
        except (RuntimeError, TypeError):
            return None
    return out
