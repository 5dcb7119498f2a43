"""IA3 for hfadapt: one learned scale a unit, on keys, values and the feed-forward layer's hidden units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from hfadapt import Capabilities, Delta, Method, MethodConfig, Place, Rows, Weights, hookimpl, select_layers
from hfadapt.method.sites import ffn_hidden, linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt.architecture import ArchitectureMap
    from hfadapt.plugins import Registry

__all__ = ["IA3", "IA3Config"]


@dataclass(frozen=True)
class IA3Config(MethodConfig):
    """Options of IA3.

    Args:
        attention: Scale keys and values.
        feed_forward: Scale the hidden units of the feed-forward layer.
    """

    method: ClassVar[str] = "ia3"

    attention: bool = True
    feed_forward: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.attention or self.feed_forward):
            self.fail("attention", self.attention, "attention or feed_forward, or both")


class ScaleDelta(Delta):
    """``value * l`` with one vector l an adapter (Liu et al. 2022, section 3.3); starts as the base, since l = 1."""

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Create l, [D], of ones."""
        weights.scale = self.parameter([self.site.width], nn.init.ones_)

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Scale each row by its own adapter's l; rows without an adapter are multiplied by exactly 1."""
        scale = rows.gather(self.weights("scale", rows.names), missing=1.0)
        return value * (scale.unsqueeze(1) if value.dim() == 3 else scale)

    @torch.no_grad()
    def merge(self, name: str, leaf: nn.Module) -> None:
        """Fold l into the linear: into its columns where its input is scaled, else into its rows and bias."""
        scale = self.adapters[name].scale
        # Linear stores [out, in], transformers' Conv1D the transpose.
        output_first = isinstance(leaf, nn.Linear)
        if self.site.side == "input":
            leaf.weight.mul_(scale if output_first else scale.unsqueeze(1))
        else:
            leaf.weight.mul_(scale.unsqueeze(1) if output_first else scale)
            if leaf.bias is not None:
                leaf.bias.mul_(scale)


class IA3(Method):
    """The method: which layer gets a scale where."""

    name = "ia3"
    config_class = IA3Config
    capabilities = Capabilities(mergeable=True)
    family = "scale"
    paper = "Liu et al. 2022, arXiv:2205.05638"
    summary = "learned scales of keys, values and feed-forward units"

    def place(self, config: IA3Config, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """See ``Method.place``."""
        for layer in select_layers(config, arch):
            for attention in (layer.attention, layer.cross_attention) if config.attention else ():
                if attention is None:
                    continue
                if attention.key is None or attention.value is None:
                    raise self.refuse(
                        "keys and values come out of one fused linear",
                        arch,
                        got=attention.fused,
                        try_="attention=False",
                    )
                for leaf in (attention.key, attention.value):
                    yield Place(linear(layer, leaf, model), ScaleDelta)
            if config.feed_forward:
                yield Place(ffn_hidden(layer), ScaleDelta)


@hookimpl
def register_methods(registry: Registry) -> None:
    """Called by hfadapt when plugins are loaded."""
    registry.add("ia3", IA3())
