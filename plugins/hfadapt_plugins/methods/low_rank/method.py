"""Where low-rank layers go."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel

from hfadapt import ArchitectureMap, Capabilities, Method, Place, select_layers

from ..shared import UpDownDelta, updown_variant
from ..shared.positions import task_function_site
from .config import LowRank

__all__ = ["LowRankMethod"]


class LowRankMethod(Method):
    """``h' = LN(h + SA(h) + TS(h))`` with a low-rank TS of its own in every layer."""

    name = "low_rank"
    config_class = LowRank
    capabilities = Capabilities(
        fusable=True,
        ops=("parallel_adapter_norm",),
        reasons={
            "mergeable": "it reads the layer's input and changes the layer's output, which no single linear connects"
        },
    )
    family = "PALs, within"
    paper = "Stickland & Murray 2019, arXiv:1902.02671, section 3.2"
    summary = "a low-rank task function beside every layer"
    tests = "tests/unit/methods/test_task_functions.py"

    def place(self, config: LowRank, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        for layer in select_layers(config, arch):
            site = task_function_site(layer, config.position)
            yield Place(site, UpDownDelta, updown_variant(config.updown(site)))

    def starts_as_base(self, config: LowRank) -> bool:
        return config.init == "identity" and config.position != "serial"
