"""Where bottleneck adapters go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel

from hfadapt import ArchitectureMap, Capabilities, Method, Place, Site, select_layers
from hfadapt.architecture import LayerMap
from hfadapt.method import Combination, Combined, sites

from ..shared import UpDownDelta, updown_variant
from ..shared.across import SharedUpDown
from ..shared.averaging import average
from ..shared.lacking import parts_in, require_parts
from ..shared.sublayers import sublayer_output, sublayer_residual
from .config import Bottleneck
from .delta import BehindNormDelta, BehindSumDelta

__all__ = ["BottleneckMethod"]


class BottleneckMethod(Method):
    """``h' = LN(f + a + u(.))`` after (or beside) attention, FFN or both."""

    name = "bottleneck"
    config_class = Bottleneck
    capabilities = Capabilities(
        fusable=True,
        ops=("parallel_adapter_norm",),
        reasons={"mergeable": "a non-linearity stands between its projections"},
    )
    family = "bottleneck"
    paper = "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247"
    summary = "a small non-linear adapter after or beside attention and FFN"
    tests = "tests/unit/methods/test_bottleneck.py"

    def combine(self, model: PreTrainedModel, weights: Mapping[str, float], how: Combination) -> Combined:
        """By averaging."""
        return average(model, weights, how)

    def place(self, config: Bottleneck, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        layers = select_layers(config, arch)
        require_parts(self, config.on, layers, arch)
        for layer in layers:
            for sublayer in parts_in(layer, config.on):
                site, delta = self._place(config, layer, sublayer, arch)
                yield Place(site, delta, _variant(config, site, delta))

    def _place(
        self, config: Bottleneck, layer: LayerMap, sublayer: str, arch: ArchitectureMap
    ) -> tuple[Site, type[UpDownDelta]]:
        norms = config.norms
        residual = sublayer_residual(layer, sublayer)
        if config.is_parallel:
            if sublayer == "ffn":
                return sites.ffn_sum(layer, residual), UpDownDelta
            return dataclasses.replace(sublayer_output(layer, sublayer), source=residual), UpDownDelta
        if not norms.original_ln_before:
            if not norms.residual_before_ln:
                raise self.refuse(
                    "residual_before_ln=False adds the norm's output, which is not computed before the adapter",
                    arch,
                    got=norms,
                    allowed="together with original_ln_before=True",
                )
            return sublayer_output(layer, sublayer), BehindSumDelta
        if layer.stack.style == "post" and f"post_{sublayer}" in layer.norms:
            site = sites.sublayer_sum(layer, sublayer)
            if not norms.original_ln_after:
                return dataclasses.replace(site, slot=f"{sublayer}_normed", side="output"), BehindSumDelta
            simple = norms.residual_before_ln and not (norms.ln_after and norms.adapter_residual_before_ln)
            return site if simple else dataclasses.replace(site, source=residual), BehindNormDelta
        if not norms.residual_before_ln and norms.original_ln_after:
            raise self.refuse(
                "residual_before_ln=False needs a norm behind the sub-layer: here the residual would be added twice",
                arch,
                got=norms,
                try_="LayerNorms(original_ln_before=True)",
            )
        return dataclasses.replace(sublayer_output(layer, sublayer), source=residual), BehindSumDelta

    def shared(self, config: Bottleneck, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module | None:
        return SharedUpDown(config, [p.site for p in self.place(config, arch, model)]) if config.share else None

    def starts_as_base(self, config: Bottleneck) -> bool:
        norms = config.norms
        return config.init == "identity" and not norms.ln_after and norms.residual_before_ln


def _variant(config: Bottleneck, site: Site, delta: type[UpDownDelta]) -> str:
    norms = config.norms
    more = {
        "par": config.is_parallel,
        "sum": delta is BehindSumDelta and site.source is not None,
        "normed": delta is BehindNormDelta,
        "zres": not norms.residual_before_ln,
    }
    return "__".join([updown_variant(config.updown(site)), *(name for name, on in more.items() if on)])
