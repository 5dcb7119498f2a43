"""Launch configurations of pal_attention's Triton kernel, and the cases that are compiled ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..triton.compile import AotCase

__all__ = ["aot_cases", "config"]

# element bytes -> tokens, outputs, inputs of a block, warps, stages; nothing spills on any target
# (`hfadapt bench triton-static`).
_CONFIGS = {2: (64, 64, 32, 8, 2), 4: (32, 32, 32, 4, 2)}


def config(dtype: torch.dtype) -> dict[str, int]:
    """Launch configuration of the grouped linear kernel."""
    return launch(*_CONFIGS[min(dtype.itemsize, 4)])


def launch(bm: int, bn: int, bk: int, warps: int, stages: int) -> dict[str, int]:
    """The keyword arguments of a launch."""
    return {"BM": bm, "BN": bn, "BK": bk, "num_warps": warps, "num_stages": stages}


def case(back: bool, element: str, blocks: dict[str, Any], **flags: Any) -> AotCase:
    """A product with W_t^T, bias and activation, or ``back``: one with W_t, added to what is there."""
    from ..triton.compile import AotCase
    from .triton_kernels import pal_linear_kernel

    types = {f"{pointer}_ptr": f"*{element}" for pointer in ("x", "out", "pre", "weight", "bias")}
    types |= {pointer: "*i64" for pointer in ("table_ptr", "ids_ptr")}
    types |= {number: "i32" for number in ("tasks", "T", "K", "N", "x_t", "out_t", "w_n", "w_k")}
    options = {"ACT": 0, "BIAS": False, "ADD": True, "SAVE": False, "w_n": 1} if back else {
        "ACT": 3, "BIAS": True, "ADD": False, "SAVE": True, "w_k": 1
    }  # fmt: skip
    options |= {"PRECISION": "ieee"} | flags
    return AotCase.make(pal_linear_kernel, types, options, blocks, size=204, aligned="K N x_t out_t w_n w_k")


def aot_cases(target: str) -> list[AotCase]:
    """Every committed configuration for ``target``."""
    dtypes = (("bf16", torch.bfloat16), ("fp32", torch.float32))
    return [case(back, element, config(dtype)) for element, dtype in dtypes for back in (False, True)]
