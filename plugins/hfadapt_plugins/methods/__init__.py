"""The adaptation methods that hfadapt ships, whose modules are imported when a method is first used."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from hfadapt import hookimpl
from hfadapt.plugins import Deferred

__all__ = ["register_methods"]

#: Where each stands (a method's class, or a preset), and the Python names that it brings to ``hfadapt``.
_PLACES = {
    "bottleneck": ("bottleneck:BottleneckMethod", "Bottleneck"),
    "design": ("design:DesignMethod", "Design"),
    "double_seq_bn": ("bottleneck.presets:DOUBLE_SEQ_BN",),
    "double_seq_bn_inv": ("bottleneck.presets:DOUBLE_SEQ_BN_INV",),
    "fusion": (
        "fusion:FusionMethod",
        *("FusionConfig", "add_fusion", "fusion_regularizer", "prune_fusion", "record_fusion"),
    ),
    "houlsby": ("bottleneck.presets:HOULSBY", "Houlsby"),
    "invertible": ("invertible:InvertibleMethod", "Invertible"),
    "lhuc": ("lhuc:LHUCMethod", "LHUC"),
    "lora": ("lora:LoRAMethod", "LoRA", "save_peft"),
    "low_rank": ("low_rank:LowRankMethod", "LowRank"),
    "mam": ("mam:MAM_PRESET", "MAM", "load_unify"),
    "mtl_lora": ("mtl_lora:MTLLoRAMethod", "MTLLoRA"),
    "pal": ("pal:PALMethod", "PAL", "load_bert_n_pals"),
    "par_bn": ("bottleneck.presets:PAR_BN",),
    "parallel": ("parallel:ParallelMethod", "ParallelConfig"),
    "pfeiffer": ("bottleneck.presets:PFEIFFER", "Pfeiffer"),
    "pooler": ("pooler:PoolerMethod", "Pooler"),
    "prefix": ("prefix:PrefixMethod", "PrefixConfig", "flatten_prefix"),
    "seq_bn": ("bottleneck.presets:SEQ_BN",),
    "seq_bn_inv": ("bottleneck.presets:SEQ_BN_INV",),
    "top_attention": ("top:TopAttentionMethod", "TopAttention"),
    "top_ffn": ("top:TopFFNMethod", "TopFFN"),
    "top_layer": ("top:TopLayerMethod", "TopLayer"),
    "top_linear": ("top:TopLinearMethod", "TopLinear"),
    "unipelt": ("unipelt:UNIPELT_PRESET", "UniPELT"),
}


@hookimpl
def register_methods(registry: Any) -> None:
    """Add every method and preset."""
    for name, (place, *exports) in _PLACES.items():
        registry.add(name, Deferred(partial(_made, place), tuple(exports)))


def _made(place: str) -> Any:
    module, _, name = place.partition(":")
    found = getattr(import_module(f".{module}", __package__), name)
    return found() if isinstance(found, type) else found
