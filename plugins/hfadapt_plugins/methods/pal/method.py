"""Where projected attention layers go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from hfadapt import ArchitectureMap, Capabilities, Method, Place, select_layers

from ..shared.positions import task_function_site
from .config import PAL
from .delta import PALAttentionDelta, PALFFNDelta, SharedEnds
from .script_checkpoint import load_bert_n_pals

__all__ = ["PALMethod"]


class PALMethod(Method):
    """``h' = LN(h + SA(h) + TS(h))`` with a small multi-head attention (or FFN) as task function."""

    name = "pal"
    config_class = PAL
    capabilities = Capabilities(
        ops=("pal_attention",),
        reasons={
            "mergeable": "attention is not a linear function of the layer's input",
            "fusable": "its change is attention of its own, and not a projection of a bottleneck",
        },
    )
    family = "PALs, within"
    paper = "Stickland & Murray 2019, arXiv:1902.02671, section 3.2"
    summary = "a small multi-head attention beside every layer, its projections shared across layers"
    tests = "tests/unit/methods/test_task_functions.py"
    exports: ClassVar[Mapping[str, Any]] = {"load_bert_n_pals": load_bert_n_pals}

    def place(self, config: PAL, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        delta = PALAttentionDelta if config.g == "attention" else PALFFNDelta
        heads = (f"h{config.num_heads}", f"drop{config.dropout:g}".replace(".", "_")) if config.g == "attention" else ()
        flags = ("" if config.bias else "nobias", "lhuc" if config.lhuc else "", config.position)
        variant = "__".join(p for p in (config.g, *heads, config.inner_activation, config.activation, *flags) if p)
        for layer in select_layers(config, arch):
            yield Place(task_function_site(layer, config.position), delta, variant)

    def shared(self, config: PAL, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module | None:
        if not config.share:
            return None
        stacks = tuple(dict.fromkeys(layer.stack.path for layer in select_layers(config, arch)))
        return SharedEnds(config, arch, stacks)

    def starts_as_base(self, config: PAL) -> bool:
        return config.init == "identity" and config.position != "serial"
