"""Where the task functions on top go: one place a stack, its last hidden state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from hfadapt import ArchitectureMap, Capabilities, Method, Place, select_layers
from hfadapt.architecture import StackMap
from hfadapt.method import sites

from .config import TopAttention, TopConfig, TopFFN, TopLayer, TopLinear
from .delta import TopAttentionDelta, TopDelta, TopFFNDelta, TopLayerDelta, TopLayers, TopLinearDelta

__all__ = ["TopAttentionMethod", "TopFFNMethod", "TopLayerMethod", "TopLinearMethod", "TopMethod"]

_PAPER = "Stickland & Murray 2019, arXiv:1902.02671, section 3.1"
_REASONS = {
    "mergeable": "it stands behind the last layer",
    "fusable": "it replaces the last hidden state, and adds no output that AdapterFusion could weigh",
}


class TopMethod(Method):
    """``h_f = TS(BERT(tokens))``; the base runs once for all tasks."""

    delta: ClassVar[type[TopDelta]]
    family = "PALs, top"
    paper = _PAPER
    tests = "tests/unit/methods/test_task_functions.py"
    capabilities = Capabilities(reasons=_REASONS)

    def place(self, config: TopConfig, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        for stack in top_stacks(config, arch):
            yield Place(sites.top(stack, model), self.delta)

    def starts_as_base(self, config: TopConfig) -> bool:
        return isinstance(config, TopLinear) and config.init == config.activation == "identity"


def top_stacks(config: TopConfig, arch: ArchitectureMap) -> list[StackMap]:
    """Return the chosen stacks; of an encoder and its decoder the decoder, unless the config names the encoder."""
    stacks = list({layer.stack.path: layer.stack for layer in select_layers(config, arch)}.values())
    decoders = [stack for stack in stacks if stack.kind == "decoder"]
    return decoders if config.stack == "all" and decoders else stacks


class TopAttentionMethod(TopMethod):
    """Projected attention on top."""

    name = "top_attention"
    config_class = TopAttention
    delta = TopAttentionDelta
    summary = "a narrow stack of attention layers on the last hidden state"


class TopLayerMethod(TopMethod):
    """One more transformer layer a task."""

    name = "top_layer"
    config_class = TopLayer
    delta = TopLayerDelta
    summary = "one more transformer layer a task"

    def shared(self, config: TopLayer, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module:
        widths = {stack: sites.top(stack, model).width for stack in top_stacks(config, arch)}
        for stack, width in widths.items():
            heads = config.num_heads or stack.num_heads
            if not heads or width % heads:
                divisors = [h for h in range(1, width + 1) if width % h == 0]
                raise self.refuse("num_heads does not divide the hidden size", arch, got=heads, allowed=divisors)
        return TopLayers(config, widths)


class TopFFNMethod(TopMethod):
    """Projected FFNs on top."""

    name = "top_ffn"
    config_class = TopFFN
    delta = TopFFNDelta
    summary = "a narrow stack of feed-forward layers on the last hidden state"


class TopLinearMethod(TopMethod):
    """A square matrix and a non-linearity on top."""

    name = "top_linear"
    config_class = TopLinear
    delta = TopLinearDelta
    summary = "a square matrix and a non-linearity on the last hidden state"
