"""Launch configurations of parallel_adapter_norm's Triton kernels, and the cases that are compiled ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..triton.compile import AotCase

__all__ = ["SUMS", "aot_cases", "config"]

#: The launch that adds up what programs left in parts: as narrow as the memory's lines, so that many programs share it.
SUMS = {"BM": 32, "BD": 32, "num_warps": 4, "num_stages": 1}

# kernel -> bytes an element -> (largest rank, BM tokens, BD columns, BR ranks, warps, stages): nothing spills with
# every option on, and shared memory fits the smallest target; `hfadapt bench triton-static` shows it.
_CONFIGS = {
    "fwd": {
        2: ((16, 16, 128, 16, 4, 2), (32, 32, 64, 32, 4, 2), (1 << 30, 32, 64, 64, 4, 2)),
        # float32 products without TF32 are sums of single products: they need registers for both operands.
        4: ((16, 16, 64, 16, 8, 2), (1 << 30, 16, 64, 32, 8, 2)),
    },
    "bwd": {
        2: ((16, 16, 128, 16, 8, 2), (32, 32, 64, 32, 4, 2), (1 << 30, 32, 64, 64, 4, 2)),
        4: ((16, 16, 64, 16, 8, 2), (1 << 30, 16, 64, 32, 4, 2)),
    },
}


def config(kernel: str, max_rank: int, element_size: int) -> dict[str, int]:
    """Launch configuration of ``kernel`` (``fwd``, ``bwd``) for bottlenecks up to ``max_rank``."""
    return launch(*next(row for row in _CONFIGS[kernel][element_size] if max_rank <= row[0])[1:])


def launch(bm: int, bd: int, br: int, warps: int, stages: int) -> dict[str, int]:
    """The keyword arguments of a launch."""
    return {"BM": bm, "BD": bd, "BR": br, "num_warps": warps, "num_stages": stages}


def case(kernel: str, rank: int, element: str, blocks: dict[str, Any], **flags: Any) -> AotCase:
    """``kernel`` for bottlenecks of ``rank`` with the options of ``flags``, everything else switched on."""
    from ..triton.compile import AotCase
    from . import triton_kernels as kernels

    types = {name: "*i64" for name in ("table_ptr", "ids_ptr", "seed_ptr")} | {"threshold": "i64"}
    types |= {name: "i32" for name in ("tasks", "T", "D", "DH", "max_rank", "programs", "parts")}
    types |= {name: "fp32" for name in ("eps", "norm_offset", "keep_scale")}
    pointers = (
        "x residual h out z pre act dout dz dh dpre norm_weight norm_bias down up down_bias up_bias scale weight bias"
    )
    types |= {f"{name}_ptr": f"*{element}" for name in (*pointers.split(), "weight", "bias")}
    types |= {f"{name}_ptr": "*fp32" for name in ("mean", "rstd", "sums", "parts")}
    options = {"ACT": 3, "NORM": 1, "SCALE": 2, "HAS_WEIGHT": True, "DROPOUT": True, "PRECISION": "ieee"}
    options |= {"HAS_RESIDUAL": True, "HAS_DOWN_BIAS": True, "HAS_UP_BIAS": True, "HAS_BIAS": True, "SAVE": True}
    options |= {"NEED_H": True, "RANK_ALIGN": 16, "WEIGHT": True, "BIAS": True} | flags
    function = getattr(kernels, f"adapter_norm_{kernel}_kernel")
    return AotCase.make(function, types, options, blocks, size=rank, aligned="D DH max_rank")


def aot_cases(target: str) -> list[AotCase]:
    """Every committed configuration for ``target``."""
    return [
        case(kernel, rank, element, config(kernel, rank, size))
        for element, size in (("bf16", 2), ("fp32", 4))
        for rank in (16, 32, 64)
        for kernel in _CONFIGS
    ] + [case("sums", 64, element, SUMS) for element in ("bf16", "fp32")]
