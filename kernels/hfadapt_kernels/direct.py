"""When torch's dispatcher may be left out between an op's public function and its kernel.

The dispatcher takes every list of tensors apart and puts it together again, once for autograd and once for the device:
with a weight for each task that takes longer than a small op. Where all it would do is to find the kernel, the kernel
is called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level

from .batch import TaskBatch

if TYPE_CHECKING:
    from .backend import FusedOp

__all__ = ["KERNELS", "kernel_alone", "unobserved"]

#: The kernel for CPU and CUDA tensors of each op that `hfadapt_kernels.opaque.define` made.
KERNELS: dict[Any, Callable[..., Any]] = {}

_PLAIN = {Tensor, nn.Parameter}
_DEVICES = ("cpu", "cuda")
_DTYPE = operator.attrgetter("dtype")


def unobserved(arguments: Sequence[Any]) -> bool:
    """Whether a kernel alone has to see a call that autograd does not watch, or watches already.

    Modes (fake tensors, counters of operations), transforms of ``torch.func``, traces and tensors of other classes
    want to hear of an op by its name, and go through the dispatcher.

    Args:
        arguments: Of the op; the first is a tensor.
    """
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or maybe_current_level() is not None
        or torch._C._is_tracing()
        or torch.compiler.is_compiling()
        or arguments[0].device.type not in _DEVICES
    ):
        return False
    for value in arguments:
        if isinstance(value, Tensor):
            if type(value) not in _PLAIN:
                return False
        elif type(value) is list and value and isinstance(value[0], Tensor) and not _PLAIN.issuperset(map(type, value)):
            return False
    return True


def kernel_alone(op: FusedOp, batch: Any, weights: Sequence[Any], *rows: Any) -> bool:
    """Whether the C++ kernel of ``op`` may be called at once: nobody watches, and what every call has is in order.

    The kernel checks shapes of the weights, and refuses what is not on its device or has another layout.

    Args:
        op: The op.
        batch: Task of every row.
        weights: Lists with a tensor a task.
        rows: Tensors [B, ...].
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if not isinstance(batch, TaskBatch):
        return False
    if not all(isinstance(one, Tensor) for one in rows) or not all(type(each) is list for each in weights):
        return False
    if not unobserved((*rows, *weights)) or not batch.num_tasks:
        return False
    dtype, size = rows[0].dtype, batch.batch_size
    for one in rows:
        if one.device.type != "cpu" or one.dtype != dtype or one.dim() < 2 or one.shape[0] != size:
            return False
    for each in weights:
        if len(each) != batch.num_tasks or set(map(_DTYPE, each)) != {dtype}:
            return False
    return dtype in (torch.float32, torch.bfloat16) and op.select("cpu", dtype).backend == "cpu"
