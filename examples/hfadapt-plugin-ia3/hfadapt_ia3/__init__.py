"""IA3 for hfadapt: one learned scale a unit, on keys, values and the feed-forward layer's hidden units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from hfadapt import Capabilities, Delta, Method, MethodConfig, Place, Rows, Weights, hookimpl, select_layers
from hfadapt.adapters.formats import Described, paths_in
from hfadapt.errors import CheckpointError
from hfadapt.method.sites import ffn_hidden, linear
from hfadapt.runtime import deltas_of

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
        outputs: Paths of further linears whose output is scaled.
        inputs: Paths of further linears whose input is scaled.
    """

    method: ClassVar[str] = "ia3"

    attention: bool = True
    feed_forward: bool = True
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.attention or self.feed_forward or self.outputs or self.inputs):
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


def read_peft(
    model: PreTrainedModel, config: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path, name: str
) -> Described:
    """Read an IA3 that peft saved: a vector at each linear, which scales its output, or its input where it says so.

    Raises:
        CheckpointError: the model has not these linears, or they stand in no layer.
    """
    end = ".ia3_l"
    saved = {
        key.removeprefix("base_model.model.").removesuffix(end): t for key, t in tensors.items() if key.endswith(end)
    }
    if len(saved) != len(tensors) or not saved or any(t.dim() != 2 or 1 not in t.shape for t in saved.values()):
        raise CheckpointError(
            "the file holds more or less than IA3's vectors", where=str(folder), got=list(tensors)[:3]
        )
    paths = paths_in(model, saved, folder)
    # peft keeps what scales an input as a row, and what scales an output as a column
    found = {paths[path]: tensor for path, tensor in saved.items()}
    inputs = tuple(path for path, tensor in found.items() if tensor.shape[0] == 1)
    outputs = tuple(path for path in found if path not in inputs)

    def weights(twin: PreTrainedModel, called: str) -> dict[str, Tensor]:
        places = {
            path.partition(".hfadapt.")[0]: f"{path}.adapters.{called}.scale" for path, _ in deltas_of(twin, called)
        }
        if set(places) != set(found):
            raise CheckpointError("IA3 of linears outside the layers", where=str(folder), got=set(found) - set(places))
        return {places[path]: tensor.flatten() for path, tensor in found.items()}

    return Described(name, (IA3Config(False, False, outputs, inputs),), weights)


class IA3(Method):
    """The method: which layer gets a scale where."""

    name = "ia3"
    config_class = IA3Config
    capabilities = Capabilities(mergeable=True)
    family = "scale"
    paper = "Liu et al. 2022, arXiv:2205.05638"
    summary = "learned scales of keys, values and feed-forward units"
    foreign: ClassVar[Mapping[str, Any]] = {"peft": {"IA3": read_peft}}

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
            for leaf in (path for path in config.outputs if path.startswith(f"{layer.path}.")):
                yield Place(linear(layer, leaf, model), ScaleDelta)
            for leaf in (path for path in config.inputs if path.startswith(f"{layer.path}.")):
                site = linear(layer, leaf, model)
                read = {"side": "input", "width": site.source_width, "source_width": 0, "reads_leaf_input": False}
                yield Place(replace(site, slot="linear_input", **read), ScaleDelta)


@hookimpl
def register_methods(registry: Registry) -> None:
    """Called by hfadapt when plugins are loaded."""
    registry.add("ia3", IA3())
