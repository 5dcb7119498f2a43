"""The adaptation methods that hfadapt ships: one line each."""

from __future__ import annotations

from typing import Any

from hfadapt import hookimpl

from . import bottleneck, top
from .bottleneck import BottleneckMethod
from .design import DesignMethod
from .fusion import FusionMethod
from .invertible import InvertibleMethod
from .lhuc import LHUCMethod
from .lora import LoRAMethod
from .low_rank import LowRankMethod
from .mam import MAM_PRESET
from .mtl_lora import MTLLoRAMethod
from .pal import PALMethod
from .parallel import ParallelMethod
from .pooler import PoolerMethod
from .prefix import PrefixMethod
from .unipelt import UNIPELT_PRESET

__all__ = ["register_methods"]


@hookimpl
def register_methods(registry: Any) -> None:
    """Add every method and preset."""
    registry.add("design", DesignMethod())
    registry.add("fusion", FusionMethod())
    registry.add("lora", LoRAMethod())
    registry.add("low_rank", LowRankMethod())
    registry.add("mtl_lora", MTLLoRAMethod())
    registry.add("pal", PALMethod())
    registry.add("prefix", PrefixMethod())
    registry.add("parallel", ParallelMethod())
    registry.add("mam", MAM_PRESET)
    registry.add("unipelt", UNIPELT_PRESET)
    registry.add("invertible", InvertibleMethod())
    registry.add("lhuc", LHUCMethod())
    for method in top.METHODS:
        registry.add(method.name, method)
    registry.add("pooler", PoolerMethod())
    registry.add("bottleneck", BottleneckMethod())
    for preset in bottleneck.PRESETS:
        registry.add(preset.name, preset)
