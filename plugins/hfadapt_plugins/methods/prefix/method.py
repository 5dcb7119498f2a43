"""Where prefixes go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hfadapt import Capabilities, Method, Place, select_layers, sites

from ..gating import gate_variant
from .config import PrefixConfig
from .delta import PrefixDelta
from .flatten import flatten_prefix
from .tables import PrefixTables, attentions_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap

__all__ = ["PrefixMethod"]


class PrefixMethod(Method):
    """Trained keys and values in the core of every attention."""

    name = "prefix"
    config_class = PrefixConfig
    capabilities = Capabilities(
        ops=("prefix_attention",),
        reasons={
            "mergeable": "its softmax over prefix and keys is not linear in what a linear reads",
            "fusable": "it changes attention, and has no output of its own that AdapterFusion could weigh",
        },
    )
    family = "unified view"
    paper = "Li and Liang 2021, arXiv:2101.00190; He et al. 2022, arXiv:2110.04366"
    summary = "trained keys and values in front of every attention's own"
    exports: ClassVar[Mapping[str, Any]] = {"flatten_prefix": flatten_prefix}

    def shared(self, config: PrefixConfig, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module | None:
        """The reparametrisation networks, one for each kind of attention and all its layers."""
        return PrefixTables(config, arch) if config.reparametrization == "mlp" else None

    def place(self, config: PrefixConfig, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """One place in each attention that ``config.attention`` names."""
        if not arch.attention_interface:
            raise self.refuse(
                "prefixes need a model that calls attention through transformers' AttentionInterface",
                arch,
                got=f"{type(model).__name__}, which computes attention by itself",
                try_="lora, bottleneck, parallel or pal, which change no attention core",
            )
        parts = (config.form, "norm" if config.query_norm else "", gate_variant(config))
        drop = f"p{config.dropout:g}".replace(".", "_") if config.dropout else ""
        variant = "_".join(p for p in (*parts, drop) if p)
        for layer in select_layers(config, arch):
            for cross in attentions_of(config, layer):
                attention = layer.cross_attention if cross else layer.attention
                if config.query_norm and attention.query is None:  # type: ignore[union-attr]
                    raise self.refuse("query_norm needs a query projection of its own", arch, got="a fused one")
                reads = config.query_norm or config.gate != "none"
                source = sites.attention_input(layer, cross) if reads else None
                yield Place(sites.attention_core(layer, cross, source), PrefixDelta, variant)
