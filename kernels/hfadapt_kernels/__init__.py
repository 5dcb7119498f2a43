"""Fused ops of hfadapt: a reference, a C++ CPU and a Triton implementation of each.

Every op takes a `TaskBatch`, which says the task of each row, and one tensor a task for each per-task parameter.
`use_backend` and ``HFADAPT_BACKEND`` choose the implementation, `explain` says which one runs here and why.
"""

from . import layers
from .activations import ACTIVATIONS, get_activation
from .adapter_fusion import KeptProducts, adapter_fusion
from .backend import explain, requested_backend, use_backend
from .batch import TaskBatch
from .dropout import draw_seed
from .errors import (
    BackendError,
    DoubleBackwardError,
    KernelError,
    RowIdError,
    ShapeError,
    SharedMemoryError,
    UnsupportedError,
)
from .frozen_linear import PackedLinear, frozen_linear
from .grouped_lora import grouped_lora, lora_linear
from .pal_attention import pal_attention
from .parallel_adapter_norm import parallel_adapter_norm
from .prefix_attention import prefix_attention
from .rows import drop_rows, row_linear, rowwise

__all__ = [
    "ACTIVATIONS",
    "BackendError",
    "DoubleBackwardError",
    "KeptProducts",
    "KernelError",
    "PackedLinear",
    "RowIdError",
    "ShapeError",
    "SharedMemoryError",
    "TaskBatch",
    "UnsupportedError",
    "adapter_fusion",
    "draw_seed",
    "drop_rows",
    "explain",
    "frozen_linear",
    "get_activation",
    "grouped_lora",
    "layers",
    "lora_linear",
    "pal_attention",
    "parallel_adapter_norm",
    "prefix_attention",
    "requested_backend",
    "row_linear",
    "rowwise",
    "use_backend",
]
