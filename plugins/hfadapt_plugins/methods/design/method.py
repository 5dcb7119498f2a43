"""Where the deltas of a design go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from hfadapt import Capabilities, Method, Place, Site, select_layers
from hfadapt.architecture import LayerMap
from hfadapt.method import sites

from ..lora.targets import find_targets
from ..parallel import ByHeadDelta
from ..prefix.method import prefix_places
from ..shared import UpDownDelta, updown_variant
from ..shared.lacking import require_parts
from ..shared.sublayers import sublayer_output, sublayer_residual
from .config import LINEARS, Design
from .delta import LinearDelta, ScaledPrefixDelta

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap

__all__ = ["DesignMethod"]


class DesignMethod(Method):
    """Any point of the design space: functional form, insertion, modified representation, composition."""

    name = "design"
    config_class = Design
    capabilities = Capabilities(
        fusable=True,
        ops=("parallel_adapter_norm", "prefix_attention"),
        reasons={"mergeable": "only one point of the space can be merged, which is lora"},
    )
    family = "unified view"
    paper = "He et al. 2022, arXiv:2110.04366"
    summary = "any point of the design space, named by its four choices"
    tests = "tests/unit/methods/test_design.py"

    def starts_as_base(self, config: Design) -> bool:
        """What is added is zero at first; a gated prefix takes its share from the start."""
        return config.init == "identity"

    def place(self, config: Design, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """One place for each word of ``config.modified`` in each layer."""
        if config.form == "prefix":
            scaled = f"s_{config.scale}" if isinstance(config.scale, str) else ""
            yield from prefix_places(self, config.prefix(), arch, model, ScaledPrefixDelta, scaled)
            return
        layers = select_layers(config, arch)
        words = {"layer": (), "ffn": ("ffn",)}
        parts = [part for word in config.modified if word not in LINEARS for part in words.get(word, ("attention",))]
        require_parts(self, parts if "self" in config.attention else [p for p in parts if p == "ffn"], layers, arch)
        crosses = any(layer.cross_attention is not None for layer in layers)
        if config.attention == ("cross",) and not crosses and set(config.modified) - {"ffn", "layer"}:
            raise self.refuse("no chosen layer has cross-attention", arch, got=config.attention, allowed="'self'")
        for layer in layers:
            for word in config.modified:
                yield from (_place(config, site, word) for site in _sites(config, layer, word))
        if config.linears:
            for target in find_targets(config.linears, config, arch, model):
                yield _place(config, _insert(config, target.site), f"linear{target.part and '_' + target.part}")


def _place(config: Design, site: Site, word: str) -> Place:
    delta = ByHeadDelta if word == "each_head" else LinearDelta if word.startswith("linear") else UpDownDelta
    return Place(site, delta, "__".join((updown_variant(config.updown(site)), config.insertion, word)))


def _sites(config: Design, layer: LayerMap, word: str) -> Iterator[Site]:
    """The sites of one word that is no linear; none where the layer lacks that attention."""
    if word in LINEARS:
        return
    parallel = config.insertion == "parallel"
    if word == "layer":
        yield sites.layer_sum(layer) if parallel else sites.layer_output(layer)
        return
    if word == "ffn":
        if not layer.has("ffn"):
            return
        yield sites.ffn_sum(layer, sites.ffn_input(layer)) if parallel else sites.ffn_output(layer)
        return
    for kind in config.attention:
        cross = kind == "cross"
        if not layer.has("cross" if cross else "attention"):
            continue
        if word == "attention":
            sublayer = "cross" if cross else "attention"
            site = dataclasses.replace(sublayer_output(layer, sublayer), source=sublayer_residual(layer, sublayer))
        else:
            site = sites.attention_heads(layer, cross)
        yield _insert(config, site)


def _insert(config: Design, site: Site) -> Site:
    """The site as it is for a parallel delta; a sequential one reads what it changes."""
    if config.insertion == "parallel":
        return site
    width = site.changed_width if site.part is not None else 0
    return dataclasses.replace(site, source=None, reads_leaf_input=False, source_width=width)
