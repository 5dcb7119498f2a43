"""Where invertible adapters go: behind the embeddings, and inverted before a language-model head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from hfadapt import ArchitectureMap, Capabilities, Delta, Method, Place, Rows, Site, Weights, select_layers
from hfadapt.architecture import StackMap
from hfadapt.method import sites
from hfadapt_kernels import rowwise

from ..shared import change_rows
from .config import Invertible
from .coupling import coupling

__all__ = ["InverseDelta", "InvertibleDelta", "InvertibleMethod"]


class InvertibleDelta(Delta):
    """Replaces the embeddings by the invertible function of them."""

    inverse: ClassVar[bool] = False

    def init_weights(self, weights: Weights, config: Invertible, shared: nn.Module | None) -> None:
        assert shared is not None

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        def compute(index: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
            function = self.shared(rows.names[index])
            return rowwise(lambda x: function(x, self.inverse), pick(value))

        return change_rows(rows.batch, value, compute)


class InverseDelta(InvertibleDelta):
    """Replaces the last hidden state by the inverse of the function, so that the tied output embeddings fit it."""

    inverse = True


class InvertibleMethod(Method):
    """An invertible function of the embeddings; its inverse, with the same parameters, before the LM head."""

    name = "invertible"
    config_class = Invertible
    capabilities = Capabilities(
        shares_trunk=False,
        reasons={
            "mergeable": "it acts on the sum of several embeddings, behind their norm",
            "fusable": "it replaces the embeddings, and adds no output that AdapterFusion could weigh",
            "shares_trunk": "it stands before the first layer, so nothing is left to share",
        },
    )
    family = "bottleneck"
    paper = "Pfeiffer et al. 2020, arXiv:2005.00052"
    summary = "an invertible function of the embeddings and its inverse before the LM head"
    tests = "tests/unit/methods/test_bottleneck.py"

    def place(self, config: Invertible, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        stacks = list({layer.stack.path: layer.stack for layer in select_layers(config, arch)}.values())
        encoders = [stack for stack in stacks if stack.kind != "decoder"]
        chosen = (encoders or stacks)[0]
        # AdapterDrop drops layers; what stands around all of them stays.
        depth = chosen.num_layers
        yield Place(replace(sites.embedding_output(chosen), layer=depth), InvertibleDelta)
        head = _head(arch.stacks[-1], model)
        if head is not None:
            if head.width != chosen.hidden_size:
                raise self.refuse(
                    "the LM head reads another width than the embeddings have",
                    arch,
                    got=head.width,
                    allowed=chosen.hidden_size,
                )
            yield Place(replace(head, layer=depth), InverseDelta)

    def shared(self, config: Invertible, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module:
        return coupling(config, next(iter(self.place(config, arch, model))).site.width)


def _head(stack: StackMap, model: PreTrainedModel) -> Site | None:
    """Return the site before the LM head: the input of the module that holds the output embeddings."""
    output = model.get_output_embeddings()
    if output is None:
        return None
    if getattr(model.config, "scale_decoder_outputs", False):  # T5 scales what the head reads; the inverse comes first
        return sites.top(stack, model)
    inside = {name: {id(m) for m in child.modules()} for name, child in model.named_children()}
    name = next((n for n, modules in inside.items() if id(output) in modules), None)
    if name is None:
        return sites.top(stack, model)
    return Site("head_input", stack.path, stack.num_layers, name, "input", stack.hidden_size)
