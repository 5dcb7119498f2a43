"""Where prefixes go."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from hfadapt import Capabilities, Method, Place, select_layers
from hfadapt.architecture import looks_up_attention
from hfadapt.method import sites

from ..shared.gating import gate_variant
from .behind import behind_places
from .config import PrefixConfig
from .delta import PrefixDelta
from .flatten import flatten_prefix
from .peft_files import read_prefix
from .tables import PrefixTables, attentions_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap
    from hfadapt.architecture import LayerMap

logger = logging.getLogger(__name__)

__all__ = ["PrefixMethod", "prefix_places"]


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
    tests = "tests/unit/methods/test_prefix.py"
    exports: ClassVar[Mapping[str, Any]] = {"flatten_prefix": flatten_prefix}
    foreign: ClassVar[Mapping[str, Mapping[str, Any]]] = {"peft": {"PREFIX_TUNING": read_prefix}}

    def shared(self, config: PrefixConfig, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module | None:
        """The reparametrisation networks, one for each kind of attention and all its layers."""
        return PrefixTables(config, arch) if config.reparametrization == "mlp" else None

    def kept(self, config: PrefixConfig) -> PrefixConfig:
        """The keys and values that the network makes: `flatten_prefix` puts them in its place."""
        return replace(config, reparametrization="flat")

    def place(self, config: PrefixConfig, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """One place in each attention that ``config.attention`` names."""
        return prefix_places(self, config, arch, model, PrefixDelta)


def prefix_places(
    method: Method,
    config: PrefixConfig,
    arch: ArchitectureMap,
    model: PreTrainedModel,
    delta: type[PrefixDelta],
    more: str = "",
) -> Iterator[Place]:
    """Yield the places of prefixes.

    Args:
        method: Names itself in errors.
        config: Where and in which form.
        arch: The model's map.
        model: The model.
        delta: What goes there.
        more: What else rows must have in common to share an instance of ``delta``.

    Raises:
        AttachError: the model computes attention by itself, or a norm is wanted for queries of a fused projection.
    """
    if not arch.attention_interface:
        mixers, unmapped = _mixers(config, arch, model), _unmapped(arch, model)
        by = f", whose tokens are mixed by {mixers}" if mixers else ""
        and_ = f"; {unmapped} calls it, and the map does not know it as attention with heads" if unmapped else ""
        by_hand = "arch= with a map by hand that has it (docs/map-an-architecture.md); " if unmapped else ""
        raise method.refuse(
            "prefixes need a model that calls attention through transformers' AttentionInterface",
            arch,
            got=f"{type(model).__name__}{by}{and_}",
            allowed="layers whose attention is a function that from_pretrained can choose",
            try_=f"{by_hand}lora, bottleneck, parallel or pal, which change no attention core",
        )
    drop = f"p{config.dropout:g}".replace(".", "_") if config.dropout else ""
    behind = {"apart": "", "keys_behind": "keys"}.get(config.tokens, "behind")
    parts = (config.form, "norm" if config.query_norm else "", gate_variant(config), drop, behind, more)
    variant = "_".join(p for p in parts if p)
    chosen = select_layers(config, arch)
    own = {layer.path: path for layer in chosen if (path := _computes_itself(layer, arch))}
    if own:
        paths = dict.fromkeys(own.values())
        stacks = ", ".join(f"{path} ({arch.own_attention[path]})" for path in paths)
        if len(own) == len(chosen):
            raise method.refuse(
                "prefixes need layers that call attention through transformers' AttentionInterface",
                arch,
                got=f"{stacks}, whose attention is computed by itself",
                try_="stack='all'; or lora, bottleneck, parallel or pal, which change no attention core",
            )
        logger.warning("%s leaves out %s, which computes attention by itself", method.name, stacks)
        chosen = [layer for layer in chosen if layer.path not in own]
    layers = [layer for layer in chosen if attentions_of(config, layer)]
    if without := [layer.path for layer in chosen if not layer.stack.num_heads]:
        shown = ", ".join(without)
        logger.warning("%s: no attention, and so no prefix, in %s", method.name, shown)
    if behind:
        behind_stacks = list({layer.stack.path: layer.stack for layer in layers}.values())
        yield from behind_places(method, config, behind_stacks, arch, model)
    for layer in layers:
        for cross in attentions_of(config, layer):
            attention = layer.cross_attention if cross else layer.attention
            if config.query_norm and attention.query is None:  # type: ignore[union-attr]
                raise method.refuse("query_norm needs a query projection of its own", arch, got="a fused one")
            reads = config.query_norm or config.gate != "none"
            source = sites.attention_input(layer, cross) if reads else None
            yield Place(sites.attention_core(layer, cross, source), delta, variant)


def _computes_itself(layer: LayerMap, arch: ArchitectureMap) -> str:
    """The path by which the map says that a layer's attention is not transformers' function; "" where it is."""
    return next((path for path in (layer.stack.path, layer.path) if path in arch.own_attention), "")


def _mixers(config: PrefixConfig, arch: ArchitectureMap, model: nn.Module) -> str:
    """The classes of what mixes the tokens in the chosen layers."""
    modules = [layer.attention.module for layer in select_layers(config, arch) if layer.has("attention")]
    return ", ".join(dict.fromkeys(type(model.get_submodule(path)).__name__ for path in modules))


def _unmapped(arch: ArchitectureMap, model: nn.Module) -> str:
    """The first module that takes its attention function from transformers and is no attention of the map's; or ""."""
    parts = [
        part for layer in arch.layers() if layer.stack.num_heads for part in (layer.attention, layer.cross_attention)
    ]
    known = {part.module for part in parts if part is not None}
    others = {path: one for path, one in model.named_modules() if looks_up_attention(one) and path not in known}
    return next((f"{path} ({type(one).__name__})" for path, one in others.items()), "")
