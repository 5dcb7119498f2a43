"""MAM: prefix tuning with a small prefix in attention, a scaled parallel adapter beside the FFN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfadapt import MethodConfig, MethodPreset

from ..parallel import ParallelConfig
from ..prefix import PrefixConfig
from ..shared.parts import read_part
from .fork_checkpoint import load_unify

__all__ = ["MAM_PRESET", "mam"]


def mam(
    prefix: PrefixConfig | Mapping[str, Any] | None = None,
    ffn: ParallelConfig | Mapping[str, Any] | None = None,
    *,
    layers: str | tuple[int, ...] = "all",
    stack: str = "all",
) -> tuple[MethodConfig, ...]:
    """The mix-and-match adapter: prefix of 30 in every attention, parallel adapter of 512 with s = 4 beside the FFN.

    (He et al. 2022, arXiv:2110.04366, section 4.6.)

    Args:
        prefix: The prefix, or fields of it.
        ffn: The parallel adapter, or fields of it.
        layers: See ``MethodConfig``; for parts that are not given as configs.
        stack: See ``MethodConfig``.
    """
    common = {"layers": layers, "stack": stack}
    return (
        read_part(PrefixConfig, prefix, {"num_virtual_tokens": 30, **common}),
        read_part(ParallelConfig, ffn, {"r": 512, "scale": 4.0, "sublayers": ("ffn",), **common}),
    )


MAM_PRESET = MethodPreset(
    "mam",
    mam,
    export="MAM",
    paper="He et al. 2022, arXiv:2110.04366",
    summary="prefix tuning in attention and a scaled parallel adapter beside the FFN",
    family="unified view",
    tests="tests/unit/methods/test_mam.py",
    exports={"load_unify": load_unify},
)
