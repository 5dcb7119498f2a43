"""Where projected attention layers go."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from hfadapt import ArchitectureMap, Capabilities, Method, Place, select_layers
from hfadapt.architecture import LayerMap

from ..shared.positions import task_function_site
from .config import PAL
from .delta import PALAttentionDelta, PALFFNDelta, SharedEnds
from .script_checkpoint import load_bert_n_pals

__all__ = ["PALMethod"]

logger = logging.getLogger(__name__)


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
        for layer in self._layers(config, arch):
            yield Place(task_function_site(layer, config.position), delta, variant)

    def shared(self, config: PAL, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module | None:
        if not config.share:
            return None
        return SharedEnds(config, self._layers(config, arch))

    def _layers(self, config: PAL, arch: ArchitectureMap) -> list[LayerMap]:
        """The chosen layers in which a row's tokens are known apart from those of other rows, which attention needs.

        Raises:
            AttachError: there is none.
        """
        chosen = select_layers(config, arch)
        if config.g != "attention":
            return chosen
        fit = [layer for layer in chosen if not layer.stack.listed]
        listed = ", ".join(dict.fromkeys(layer.stack.path for layer in chosen if layer.stack.listed))
        if not fit:
            raise self.refuse(
                "attention beside a layer needs to know which tokens are one row's, and these layers have those of all "
                "rows, or images, in one list",
                arch,
                got=f"hidden states [N, D], or tokens that never see another, in {listed}",
                allowed="layers whose hidden states have an axis of rows",
                try_="g='ffn', whose tokens do not see one another; or lora, bottleneck or parallel",
            )
        if listed:
            logger.warning("pal leaves out %s, where tokens beside each other need not be one row's", listed)
        return fit

    def starts_as_base(self, config: PAL) -> bool:
        return config.init == "identity" and config.position != "serial"
