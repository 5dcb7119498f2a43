"""Launch configurations of adapter_fusion's Triton kernels, and the cases that are compiled ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..triton.compile import AotCase

__all__ = ["aot_cases", "config"]

# kernel -> columns at a time -> BM tokens, warps; nothing spills on any target (`hfadapt bench triton-static`).
_CONFIGS = {
    # 64 columns forward spill 8 bytes on sm_90, 32 by 32 on sm_100; 32 by 16 backward on both.
    "fwd": {16: (32, 4), 32: (16, 4)},
    "bwd": {16: (16, 4), 32: (32, 4), 64: (16, 4)},
}


def config(kernel: str, max_rank: int) -> dict[str, int]:
    """Launch configuration of ``kernel`` for bottlenecks up to ``max_rank``: BM tokens, BR columns at a time."""
    columns = min(max(_CONFIGS[kernel]), max(16, 1 << (max_rank - 1).bit_length()))
    return launch(columns, *_CONFIGS[kernel][columns])


def launch(columns: int, bm: int, warps: int) -> dict[str, int]:
    """The keyword arguments of a launch."""
    return {"BM": bm, "BR": columns, "num_warps": warps, "num_stages": 1}


def case(kernel: str, rank: int, element: str, blocks: dict[str, Any], **flags: Any) -> AotCase:
    """``kernel`` (``fwd``, ``bwd``) for bottlenecks of ``rank`` with the options of ``flags``, all others on."""
    from ..triton.compile import AotCase
    from . import triton_kernels as kernels

    types = {f"{name}_ptr": f"*{element}" for name in ("y", "g", "dy", "shift", "dshift", "out", "hidden", "dz")}
    types |= {"weights_ptr": "*fp32", "gw_ptr": "*fp32", "seed_ptr": "*i64", "table_ptr": "*i64"}
    types |= {"tokens": "i32", "M": "i32", "N": "i32"}
    types |= {"inverse_temperature": "fp32", "threshold": "i64", "keep": "fp32"}
    options = dict.fromkeys(("BIASED", "SHIFT", "DROPOUT", "GRAD_WEIGHTS", "NEED_HIDDEN"), True) | flags
    function = getattr(kernels, f"adapter_fusion_{kernel}_kernel")
    return AotCase.make(function, types, options, blocks, size=rank)


def aot_cases(target: str) -> list[AotCase]:
    """Every committed configuration for ``target``."""
    return [
        case(kernel, rank, element, config(kernel, rank))
        for element in ("bf16", "fp32")
        for rank in (16, 32, 64)
        for kernel in _CONFIGS
    ]
