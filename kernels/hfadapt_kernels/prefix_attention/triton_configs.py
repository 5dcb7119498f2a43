"""Launch configurations of prefix_attention's Triton kernels, and the cases that are compiled ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..triton.compile import AotCase

__all__ = ["KERNELS", "aot_cases", "case", "config", "smaller"]

Config = tuple[int, int, int, int]
KERNELS = ("fwd", "dq", "dkv", "dprefix")

# Kernel, bytes an element, largest head dimension -> (queries, keys, warps, stages) of a block on each target: the
# largest of those tried that spill nothing with every option on (mask, bias, dropout, gradient of the gate), with the
# newest Triton and with the one that the newest torch brings. `hfadapt bench triton-static` shows it.
_TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
_CONFIGS: dict[tuple[str, int, int], tuple[Config, Config, Config, Config]] = {
    ("fwd", 2, 64): ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    ("fwd", 2, 128): ((64, 32, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
    ("fwd", 2, 256): ((32, 32, 8, 2), (32, 32, 8, 2), (32, 32, 8, 2), (32, 32, 8, 2)),
    ("fwd", 4, 64): ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
    ("fwd", 4, 128): ((16, 32, 8, 1), (16, 32, 8, 1), (16, 32, 8, 1), (16, 32, 8, 1)),
    ("fwd", 4, 256): ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    ("dq", 2, 64): ((64, 32, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2), (64, 64, 4, 2)),
    ("dq", 2, 128): ((64, 32, 8, 2), (64, 32, 8, 2), (64, 64, 8, 2), (64, 32, 4, 2)),
    ("dq", 2, 256): ((32, 32, 8, 2), (32, 32, 8, 2), (32, 32, 8, 2), (16, 32, 8, 2)),
    ("dq", 4, 64): ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 4, 1)),
    ("dq", 4, 128): ((32, 32, 8, 1), (32, 32, 8, 1), (64, 16, 8, 1), (16, 32, 4, 1)),
    ("dq", 4, 256): ((16, 32, 8, 1), (16, 32, 8, 1), (16, 32, 8, 1), (16, 16, 4, 1)),
    ("dkv", 2, 64): ((64, 32, 8, 2), (32, 64, 4, 2), (64, 64, 8, 2), (64, 32, 4, 2)),
    ("dkv", 2, 128): ((32, 32, 8, 2), (32, 64, 8, 2), (64, 32, 8, 2), (64, 32, 4, 2)),
    ("dkv", 2, 256): ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (16, 16, 8, 1)),
    ("dkv", 4, 64): ((32, 32, 8, 1), (16, 32, 4, 1), (32, 16, 4, 1), (32, 32, 4, 1)),
    ("dkv", 4, 128): ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (16, 32, 4, 1)),
    ("dkv", 4, 256): ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    ("dprefix", 2, 64): ((64, 32, 4, 2), (64, 64, 8, 2), (64, 64, 8, 2), (64, 64, 4, 2)),
    ("dprefix", 2, 128): ((64, 64, 8, 2), (32, 64, 8, 2), (32, 64, 4, 2), (64, 32, 4, 2)),
    ("dprefix", 2, 256): ((32, 32, 8, 2), (32, 32, 8, 2), (32, 32, 8, 2), (16, 16, 8, 1)),
    ("dprefix", 4, 64): ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
    ("dprefix", 4, 128): ((16, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (16, 32, 4, 1)),
    ("dprefix", 4, 256): ((16, 16, 16, 1), (16, 16, 16, 1), (16, 16, 16, 1), (16, 16, 8, 1)),
}  # fmt: skip

# Where a card that takes those of sm_80 has not the shared memory for them: the largest below 48 KiB, which every card
# has. float32 heads of 256 have none: two blocks of 16, the least of a product, take 64 KiB.
_SMALLER: dict[tuple[str, int, int], Config] = {
    ("fwd", 2, 256): (32, 16, 8, 2),
    ("dq", 2, 128): (32, 32, 8, 2),
    ("dq", 2, 256): (16, 16, 8, 2),
    ("dkv", 2, 256): (16, 16, 8, 1),
    ("dkv", 4, 128): (16, 16, 8, 1),
    ("dprefix", 2, 128): (32, 32, 8, 2),
    ("dprefix", 2, 256): (16, 16, 8, 1),
    ("dprefix", 4, 128): (16, 16, 8, 1),
}


def config(kernel: str, dim: int, dtype: torch.dtype, target: str) -> dict[str, Any]:
    """Launch configuration of ``kernel`` (one of `KERNELS`) for heads of ``dim`` on ``target``."""
    size, largest = _row(dim, dtype)
    return launch(kernel, _CONFIGS[kernel, size, largest][_TARGETS.index(target)], dim, size)


def smaller(kernel: str, dim: int, dtype: torch.dtype, target: str) -> list[dict[str, Any]]:
    """What to take instead where a card has not the shared memory for `config`."""
    chosen = _SMALLER.get((kernel, *_row(dim, dtype))) if target == "sm_80" else None
    return [] if chosen is None else [launch(kernel, chosen, dim, min(dtype.itemsize, 4))]


def _row(dim: int, dtype: torch.dtype) -> tuple[int, int]:
    return min(dtype.itemsize, 4), next(limit for limit in (64, 128, 256) if dim <= limit)


def launch(kernel: str, chosen: Config, dim: int, size: int) -> dict[str, Any]:
    """The keyword arguments of a launch with elements of ``size`` bytes."""
    bm, bn, warps, stages = chosen
    block = max(16, 1 << (dim - 1).bit_length())
    blocks = {"BM": bm, "BN": bn, "BD": block, "EVEN": block == dim, "num_warps": warps, "num_stages": stages}
    return blocks | ({"WIDE": size == 4 and dim > 64} if kernel == "dq" else {})


def case(kernel: str, dim: int, element: str, blocks: dict[str, Any], **flags: Any) -> AotCase:
    """``kernel`` for heads of ``dim`` with the options of ``flags``, everything else switched on."""
    from ..triton.compile import AotCase
    from . import triton_backward, triton_kernels

    strides = [f"{t}_{axis}" for t in ("q", "k", "v", "o", "dk") for axis in "bht"]
    strides += [f"{t}_{axis}" for t in ("mask", "bias") for axis in "bhqk"]
    types = dict.fromkeys((*strides, "tasks", "H", "G", "TQ", "TK", "D"), "i32") | {"threshold": "i64", "plane": "i64"}
    types |= {"scaling": "fp32", "keep": "fp32", "seed_ptr": "*i64"}
    types |= dict.fromkeys((f"{name}_ptr" for name in ("table", "ids", "order", "starts")), "*i64")
    types |= dict.fromkeys((f"{name}_ptr" for name in ("gate", "dgate", "lse", "delta", "dscores")), "*fp32")
    names = ("q", "k", "v", "out", "do", "dq", "dk", "dv", "bias", "mask", "pk", "pv", "dpk", "dpv")
    types |= dict.fromkeys((f"{name}_ptr" for name in names), f"*{element}")
    options = {"FORM": 0, "CAUSAL": True, "MASK": 2, "BIAS": True, "DROPOUT": True, "DGATE": True, "DSCORES": True}
    # The launcher makes strides of 1 constants.
    options |= {"PRECISION": "ieee", "mask_k": 1, "bias_k": 1} | flags
    aligned = " ".join(name for name in strides if not name.startswith(("mask", "bias"))) + " D"
    module = triton_kernels if kernel == "fwd" else triton_backward
    function = getattr(module, f"prefix_attention_{kernel}_kernel")
    return AotCase.make(function, types, options, blocks, size=dim, aligned=aligned)


def aot_cases(target: str) -> list[AotCase]:
    """Every committed configuration for ``target``."""
    return [
        case(kernel, dim, element, blocks)
        for element, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        for dim in (64, 128, 256)
        for kernel in KERNELS
        for blocks in (config(kernel, dim, dtype, target), *smaller(kernel, dim, dtype, target))
    ]
