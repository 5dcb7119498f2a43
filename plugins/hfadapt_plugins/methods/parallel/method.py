"""Where parallel adapters go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from hfadapt import Capabilities, Method, Place, select_layers
from hfadapt.method import sites

from ..shared import UpDownDelta, updown_variant
from ..shared.averaging import average
from ..shared.lacking import require_parts, stands_alone
from .config import ParallelConfig
from .delta import ByHeadDelta

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap
    from hfadapt.method import Combination, Combined

__all__ = ["ParallelMethod"]


class ParallelMethod(Method):
    """Adapters beside the FFN, the attentions, or both."""

    name = "parallel"
    config_class = ParallelConfig
    capabilities = Capabilities(
        fusable=True,
        ops=("parallel_adapter_norm",),
        reasons={"mergeable": "a non-linearity stands between its projections"},
    )
    family = "unified view"
    paper = "He et al. 2022, arXiv:2110.04366"
    summary = "a scaled bottleneck beside FFN or attention, reading the sub-layer's input"
    tests = "tests/unit/methods/test_parallel_adapters.py"

    def starts_as_base(self, config: ParallelConfig) -> bool:
        """The second projection is zero in the published initialisation."""
        return config.init == "identity"

    def combine(self, model: PreTrainedModel, weights: Mapping[str, float], how: Combination) -> Combined:
        """By averaging."""
        return average(model, weights, how)

    def place(self, config: ParallelConfig, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """One adapter for each sub-layer that ``config.sublayers`` names."""
        words = set(config.sublayers)
        layers = select_layers(config, arch)
        parts = {"attention": ("attention",), "self": ("attention",)}
        # "attention" means both kinds, of which a model may lack one.
        require_parts(self, [part for word in config.sublayers for part in parts.get(word, (word,))], layers, arch)
        for layer in layers:
            alone = stands_alone(layer)
            if "ffn" in words and (alone or layer.has("ffn")):
                site = sites.layer_sum(layer) if alone else sites.ffn_sum(layer, sites.ffn_input(layer))
                yield Place(site, UpDownDelta, updown_variant(config.updown(site)))
            delta = ByHeadDelta if config.by_head else UpDownDelta
            for cross in (False, True):
                wanted = words & {"attention", "cross" if cross else "self"}
                if not wanted or not layer.has("cross" if cross else "attention"):
                    continue
                site = sites.attention_heads(layer, cross)
                heads = "by_head" if config.by_head else ""
                variant = "__".join(p for p in (updown_variant(config.updown(site)), heads) if p)
                yield Place(site, delta, variant)
