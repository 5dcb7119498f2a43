"""Launch configurations of frozen_linear's Triton kernel, and the cases that are compiled ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..triton.compile import AotCase

__all__ = ["aot_cases", "config", "int8_config"]

# Bytes of a number of the weight as it is kept, or of the inputs where it is kept as they are -> rows, outputs, inputs
# of a block, warps, stages; nothing spills on any target (`hfadapt bench triton-static`).
_CONFIGS = {1: (64, 128, 32, 4, 2), 2: (64, 128, 32, 4, 3), 4: (32, 64, 32, 4, 2)}


def config(size: int) -> dict[str, int]:
    """Launch configuration of products with a weight whose numbers have ``size`` bytes."""
    return launch(*_CONFIGS[size])


def int8_config() -> dict[str, int]:
    """Launch configuration of products of int8 rows; of int8 a product takes 32 inputs at least."""
    return launch(64, 64, 64, 8, 2)


def launch(bm: int, bn: int, bk: int, warps: int, stages: int) -> dict[str, int]:
    """The keyword arguments of a launch."""
    return {"BM": bm, "BN": bn, "BK": bk, "num_warps": warps, "num_stages": stages}


def case(element: str, weight: str, back: bool, blocks: dict[str, Any], **flags: Any) -> AotCase:
    """A product of ``element`` inputs with ``weight`` panels; ``back``: with W instead of W^T."""
    from ..triton.compile import AotCase
    from .triton_kernels import frozen_linear_kernel

    types = {"x_ptr": f"*{element}", "out_ptr": f"*{element}", "bias_ptr": f"*{element}", "w_ptr": f"*{weight}"}
    types |= {"scale_ptr": "*fp32"} | {name: "i32" for name in ("M", "K", "N", "x_m", "w_n", "w_k")}
    options = {"ACT": 0, "BIAS": False, "SCALE": False, "w_n": 1} if back else {
        "ACT": 3, "BIAS": True, "SCALE": weight == "i8", "w_k": 1
    }  # fmt: skip
    options |= {"NARROW": weight in ("i8", "bf16"), "PRECISION": "ieee"} | flags
    return AotCase.make(frozen_linear_kernel, types, options, blocks, size=768, aligned="K N x_m w_n w_k")


def int8_case(element: str, **flags: Any) -> AotCase:
    """A product of ``element`` rows that are rounded to int8."""
    from ..triton.compile import AotCase
    from .triton_int8_kernels import int8_linear_kernel

    types = {"x_ptr": f"*{element}", "out_ptr": f"*{element}", "bias_ptr": f"*{element}", "w_ptr": "*i8"}
    types |= {"plain_ptr": "*i8", "column_ptr": "*i64", "kept_ptr": "*fp32", "scale_ptr": "*fp32"}
    types |= {name: "i32" for name in ("M", "K", "N", "kept", "x_m")}
    options = {"ACT": 3, "BIAS": True, "KEPT": True} | flags
    return AotCase.make(int8_linear_kernel, types, options, int8_config(), size=768, aligned="K N x_m")


def aot_cases(target: str) -> list[AotCase]:
    """Every committed configuration for ``target``."""
    kinds = (("bf16", "bf16", 2), ("bf16", "i8", 1), ("fp32", "bf16", 2), ("fp32", "i8", 1), ("fp32", "fp32", 4))
    found = [case(x, weight, back, config(size)) for x, weight, size in kinds for back in (False, True)]
    return found + [int8_case(x) for x in ("bf16", "fp32")]
