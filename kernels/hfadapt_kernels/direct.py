"""When torch's dispatcher may be left out between an op's public function and its kernel.

The dispatcher takes every list of tensors apart and puts it together again, once for autograd and once for the device:
with a weight for each task that takes longer than a small op. Where all it would do is to find the kernel, the kernel
is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level

__all__ = ["KERNELS", "unobserved"]

#: The kernel for CPU and CUDA tensors of each op that `hfadapt_kernels.opaque.define` made.
KERNELS: dict[Any, Callable[..., Any]] = {}

_PLAIN = {Tensor, nn.Parameter}
_DEVICES = ("cpu", "cuda")


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
