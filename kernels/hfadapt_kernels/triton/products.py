"""Gradients of per-task weights through Triton: two products over the tokens of each task in one launch."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dropout import dropout_threshold
from .order import Order
from .rows import precision
from .shared import fitting
from .tables import bits, distances, task_table
from .targets import target_of

if TYPE_CHECKING:
    from .compile import AotCase

__all__ = ["NO_SCALE", "Learned", "Product", "aot_cases", "task_products"]

# Bytes an element -> block; nothing spills on any target (`hfadapt bench triton-static`).
_CONFIGS = {
    2: {"BI": 64, "BJ": 64, "BK": 32, "num_warps": 4, "num_stages": 2},
    # float32 products without TF32 are sums of single products: they need registers for both operands.
    4: {"BI": 32, "BJ": 32, "BK": 16, "num_warps": 4, "num_stages": 2},
}
# With 4 warps the blocks above spill 8 bytes there.
_EIGHT_WARPS = {("sm_100", 2), ("sm_90", 4)}
NO_SCALE = 3


def _config(size: int, target: str) -> dict[str, int]:
    return _CONFIGS[size] | ({"num_warps": 8} if (target, size) in _EIGHT_WARPS else {})


@dataclass
class Product:
    """``out_t = s_t a^T b`` and ``sums_t = s_t sum a`` over the tokens of each task.

    Attributes:
        a: Rows of all tokens, [..., columns]; of each task the first ``shapes[t][0]`` columns count.
        b: Likewise, ``shapes[t][1]``.
        shapes: Of ``out``, one a task.
        out: One of ``shapes`` a task, to be written, or none.
        sums: One [rows] a task, to be written, or none.
        scale: 0 the number of the task, 1 a learned number times it, 2 a learned vector times it, `NO_SCALE` neither.
    """

    a: Tensor
    b: Tensor
    shapes: Sequence[Sequence[int]]
    out: Sequence[Tensor] = ()
    sums: Sequence[Tensor] = ()
    scale: int = NO_SCALE

    @property
    def want(self) -> int:
        """What the kernel is asked for."""
        return (1 if self.out else 0) | (2 if self.sums else 0)


@dataclass
class Learned:
    """Learned scales of the second product, and what their gradient is made of.

    Attributes:
        scale: One tensor a task.
        weight: What ``s_t`` multiplies, of the shape of the second product, one a task.
        bias: Likewise, one [rows] a task, or none.
        parts: Written where a gradient is wanted: float32 [tasks, blocks of columns, rows]; its sum over the blocks is
            the gradient of a learned vector.
    """

    scale: Sequence[Tensor]
    weight: Sequence[Tensor] = ()
    bias: Sequence[Tensor] = ()
    parts: Tensor | None = field(default=None)

    @staticmethod
    def blocks(ranks: Sequence[int], dtype: torch.dtype, device: torch.device) -> list[int]:
        """How many blocks of columns the second product has for each task."""
        width = _config(dtype.itemsize, target_of(device))["BJ"]
        return [-(-rank // width) for rank in ranks]


def task_products(
    first: Product, second: Product, order: Order, tokens: int, numbers: Sequence[float],
    learned: Learned | None = None, dropout: float = 0.0, seed: Tensor | None = None,
) -> None:  # fmt: skip
    """Write what two `Product` want, by one launch.

    Args:
        first: Dropout falls on its ``b``.
        second: What `Learned` speaks of.
        order: From `task_order`.
        tokens: Of a row.
        numbers: A factor a task.
        learned: Where a product's ``scale`` is 1 or 2.
        dropout: Probability of dropping an element.
        seed: int64 [1], or ``None`` for no dropout.
    """
    from .products_kernel import task_products_kernel

    parts = None if learned is None else learned.parts
    wants = [first.want, second.want | (0 if parts is None else 4)]
    if not any(wants):
        return
    a, tasks = first.a, len(numbers)
    launches = [_config(a.element_size(), target_of(a.device))]
    launch = fitting("task_products_kernel", a.device, launches, a.dtype)
    none = (0,) * tasks
    lists = [list(learned.scale), list(learned.weight), list(learned.bias)] if learned is not None else [[], [], []]
    columns: list[Sequence[int]] = [bits(numbers), *(distances(tensors) or none for tensors in lists)]
    pointers: list[Tensor] = []
    for product in (first, second):
        columns += [[shape[axis] for shape in product.shapes] for axis in (0, 1)]
        columns += [distances(tensors) or none for tensors in (product.out, product.sums)]
        pointers += [product.a, product.b, *(t[0] if t else a for t in (product.out, product.sums))]
    tiles = max(
        -(-shape[0] // launch["BI"]) * -(-shape[1] // launch["BJ"])
        for product, want in zip((first, second), wants, strict=True) if want for shape in product.shapes
    )  # fmt: skip
    task_products_kernel[(2 * tasks, tiles)](
        *pointers, *(tensors[0] if tensors else a for tensors in lists), a if parts is None else parts,
        task_table(a.device, *columns), *order, order[0] if seed is None else seed, tasks, tokens, first.a.shape[-1],
        first.b.shape[-1], second.a.shape[-1], second.b.shape[-1], dropout_threshold(dropout), 1.0 / (1.0 - dropout),
        0 if parts is None else parts.shape[1], 0 if parts is None else parts.shape[2], WANT0=wants[0], WANT1=wants[1],
        SCALE0=first.scale, SCALE1=second.scale, DROPOUT=seed is not None, HAS_BIAS=bool(lists[2]),
        PRECISION=precision(a.dtype), **launch,
    )  # fmt: skip


def aot_cases(target: str) -> list[AotCase]:
    """Every committed configuration for ``target``: the products of parallel_adapter_norm and of grouped_lora."""
    from .compile import AotCase
    from .numbers import COUNT, numbers_kernel
    from .order_kernel import order_kernel
    from .products_kernel import task_products_kernel

    names = [f"{name}{pair}" for pair in (0, 1) for name in ("a", "b", "out", "sums")] + ["learned", "weight", "bias"]
    types = dict.fromkeys(("table_ptr", "order_ptr", "starts_ptr", "seed_ptr"), "*i64") | {"parts_ptr": "*fp32"}
    types |= dict.fromkeys(("tasks", "T", "a0_n", "b0_n", "a1_n", "b1_n", "parts", "height"), "i32")
    types |= {"threshold": "i64", "keep_scale": "fp32"}
    adapter = {"WANT0": 3, "WANT1": 7, "SCALE0": NO_SCALE, "SCALE1": 2, "DROPOUT": False, "HAS_BIAS": True}
    lora = {"WANT0": 1, "WANT1": 1, "SCALE0": 1, "SCALE1": 1, "DROPOUT": True, "HAS_BIAS": False}
    cases = [
        AotCase.make(
            task_products_kernel, types | {f"{name}_ptr": f"*{element}" for name in names},
            {"PRECISION": "ieee"} | options, _config(size, target), size=64, aligned="a0_n b0_n a1_n b1_n height",
        )
        for element, size in (("bf16", 2), ("fp32", 4)) for options in (adapter, lora)
    ]  # fmt: skip
    small = {"num_warps": 4, "num_stages": 1}
    rows = {"ids_ptr": "*i64", "rows_ptr": "*i64", "starts_ptr": "*i64", "B": "i32"}
    numbers = {"out_ptr": "*i64"} | {f"n{i}": "i64" for i in range(COUNT)}
    cases.append(AotCase.make(order_kernel, rows, {"BLOCK": 128}, small, size=64))
    cases.append(AotCase.make(numbers_kernel, numbers, {}, small | {"num_warps": 1}, size=64))
    return cases
