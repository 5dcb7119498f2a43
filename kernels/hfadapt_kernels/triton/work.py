"""Bytes moved and operations of one call of each Triton kernel at one reference size, and the floor of an H100.

The reference call has 32 rows of 128 tokens, hidden size 768, 12 heads, 8 tasks or adapters and prefixes of 30: every
operand is counted once, whatever a kernel reads again from cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["floor_us", "work"]

B, T, D, HEADS, TASKS, PREFIX = 32, 128, 768, 12, 8, 30
TOKENS = B * T
# NVIDIA H100 SXM data sheet: HBM3 bandwidth, dense bfloat16 tensor cores, float32 outside the tensor cores ("ieee").
_BANDWIDTH, _RATE = 3.35e12, {"bf16": 989e12, "fp32": 67e12}

_BYTES = {"i8": 1, "bf16": 2, "fp16": 2, "fp32": 4}

Work = tuple[float, float]


def _adapter_norm(products: float, streams: float) -> Callable[[int, int], Work]:
    # products of [TOKENS, D] with a rank; streams of [TOKENS, D] elements.
    return lambda size, rank: (products * 2 * TOKENS * D * rank, size * (streams * TOKENS * D + TASKS * 2 * D * rank))


def _attention(products: float, streams: float, columns: int) -> Callable[[int, int], Work]:
    # products of [TOKENS, width] with the columns of each row; streams of [TOKENS, width] elements.
    def count(size: int, dim: int) -> Work:
        width = HEADS * dim
        return products * 2 * TOKENS * width * columns, size * (streams * TOKENS * width + TASKS * 2 * PREFIX * width)

    return count


def _fusion(streams: float) -> Callable[[int, int], Work]:
    # Two operations an element of [TOKENS, M] and stream.
    return lambda size, rank: (
        2.0 * streams * TOKENS * TASKS * (rank + 1),
        size * streams * TOKENS * TASKS * (rank + 1),
    )


_WORK: Mapping[str, Callable[[int, int], Work]] = {
    "adapter_norm_fwd_kernel": _adapter_norm(2, 5),
    "adapter_norm_bwd_kernel": _adapter_norm(2, 4),
    # A float32 number a column, task and block of 32 tokens, of two kinds.
    "adapter_norm_sums_kernel": lambda size, rank: (2.0 * TOKENS / 32 * D, 4.0 * 2 * TOKENS / 32 * D + size * 2 * D),
    "task_products_kernel": lambda size, rank: (
        2 * 2.0 * TOKENS * D * rank,
        size * (2 * TOKENS * (D + rank) + 2 * TASKS * D * rank),
    ),
    "order_kernel": lambda size, rank: (2.0 * B * TASKS, 8.0 * (2 * B + TASKS)),
    "numbers_kernel": lambda size, rank: (0.0, 8.0 * 16),
    "lora_rows_kernel": _adapter_norm(2, 3),
    "lora_scales_kernel": lambda size, rank: (TOKENS / 16, 4.0 * TOKENS / 16 + size * TASKS),
    "pal_linear_kernel": lambda size, rank: (2.0 * TOKENS * D * 204, size * (TOKENS * (D + 204) + TASKS * D * 204)),
    "prefix_attention_fwd_kernel": _attention(2, 4, T + PREFIX),
    "prefix_attention_dq_kernel": _attention(3, 6, T + PREFIX),
    "prefix_attention_dkv_kernel": _attention(4, 6, T),
    "prefix_attention_dprefix_kernel": _attention(4, 2, PREFIX),
    # The weight is read once, in its own type.
    "frozen_linear_kernel": lambda size, width: (2.0 * TOKENS * D * width, size * TOKENS * (D + width)),
    "int8_linear_kernel": lambda size, width: (2.0 * TOKENS * D * width, size * TOKENS * (D + width)),
    "adapter_fusion_fwd_kernel": _fusion(3),
    "adapter_fusion_bwd_kernel": _fusion(5),
}


def work(kernel: str, element: str, size: int, weight: str | None = None) -> Work:
    """Operations and bytes of the reference call of a kernel.

    Args:
        kernel: Its name.
        element: Type of the data: ``bf16``, ``fp16`` or ``fp32``.
        size: Rank, head dimension or outputs.
        weight: Type of a [D, size] weight that has its own: ``i8`` or one of the above.
    """
    flops, moved = _WORK[kernel](_BYTES[element], size)
    return flops, moved + (_BYTES[weight] * D * size if weight else 0)


def floor_us(flops: float, moved: float, element: str) -> float:
    """What an H100 needs at least, in microseconds: the larger of arithmetic and traffic. A bound, never measured."""
    return 1e6 * max(flops / _RATE.get(element, _RATE["bf16"]), moved / _BANDWIDTH)
