"""Launch configurations of grouped_lora's Triton kernel, and the cases that are compiled ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..triton.compile import AotCase

__all__ = ["SCALES", "aot_cases", "config"]

#: The launch that adds up the gradients of learned scales.
SCALES = {"BLOCK": 128, "num_warps": 4, "num_stages": 1}

# Bytes an element -> (largest rank, BM tokens, BK inputs, BN outputs, BR ranks, warps, stages): nothing spills on any
# target, and shared memory fits the smallest; `hfadapt bench triton-static` shows it.
_CONFIGS = {
    2: ((16, 16, 64, 128, 16, 4, 2), (32, 16, 64, 64, 32, 4, 2), (1 << 30, 32, 32, 64, 64, 8, 2)),
    4: ((16, 16, 64, 128, 16, 4, 2), (1 << 30, 16, 64, 64, 32, 4, 2)),
}


def config(max_rank: int, element_size: int) -> dict[str, int]:
    """Launch configuration for ranks up to ``max_rank`` and elements of 2 or 4 bytes."""
    return launch(*next(row for row in _CONFIGS[element_size] if max_rank <= row[0])[1:])


def launch(bm: int, bk: int, bn: int, br: int, warps: int, stages: int) -> dict[str, int]:
    """The keyword arguments of a launch."""
    return {"BM": bm, "BK": bk, "BN": bn, "BR": br, "num_warps": warps, "num_stages": stages}


def case(backward: bool, rank: int, element: str, blocks: dict[str, Any], **flags: Any) -> AotCase:
    """The kernel for ranks up to ``rank`` with the options of ``flags``, everything else switched on."""
    from ..triton.compile import AotCase
    from .triton_kernels import lora_rows_kernel

    names = ("x", "base", "out", "low", "other", "down", "up", "learned")
    types = {f"{name}_ptr": f"*{element}" for name in names} | {"parts_ptr": "*fp32"}
    types |= {name: "*i64" for name in ("table_ptr", "ids_ptr", "seed_ptr")}
    types |= {"threshold": "i64", "keep_scale": "fp32"}
    types |= {name: "i32" for name in ("tasks", "T", "K", "N", "max_rank")}
    options = {"HAS_BASE": True, "BACKWARD": backward, "DROPOUT": True, "NEED_OUT": True, "PRECISION": "ieee"}
    options |= {"LEARNED": True, "PARTS": backward, "RANK_ALIGN": 16} | flags
    return AotCase.make(lora_rows_kernel, types, options, blocks, size=rank, aligned="K N max_rank")


def aot_cases(target: str) -> list[AotCase]:
    """Every committed configuration for ``target``."""
    return [
        case(backward, rank, element, config(rank, size))
        for element, size in (("bf16", 2), ("fp32", 4))
        for rank in (16, 32, 64)
        for backward in (False, True)
    ] + [_scales_case(element) for element in ("bf16", "fp32")]


def _scales_case(element: str) -> AotCase:
    from ..triton.compile import AotCase
    from .triton_kernels import lora_scales_kernel

    types = {"parts_ptr": "*fp32", "grad_ptr": f"*{element}", "tasks": "i32", "programs": "i32"}
    types |= {name: "*i64" for name in ("table_ptr", "order_ptr", "starts_ptr")}
    return AotCase.make(lora_scales_kernel, types, {}, SCALES, size=64)
