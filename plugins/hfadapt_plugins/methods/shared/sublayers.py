"""The output and the residual of a sub-layer, by its name."""

from __future__ import annotations

from hfadapt import Site
from hfadapt.architecture import LayerMap
from hfadapt.method import Tap, sites

__all__ = ["sublayer_output", "sublayer_residual"]


def sublayer_output(layer: LayerMap, sublayer: str) -> Site:
    """Return the site at the output of ``"attention"``, ``"cross"`` or ``"ffn"``."""
    make = {"attention": sites.attention_output, "cross": sites.cross_output, "ffn": sites.ffn_output}
    return make[sublayer](layer)


def sublayer_residual(layer: LayerMap, sublayer: str) -> Tap:
    """Return the residual stream that enters a sub-layer, before its pre-norm."""
    if sublayer == "ffn":
        return sites.ffn_input(layer)
    if sublayer == "attention":
        return sites.layer_input(layer)
    role = layer.norms.get("pre_cross")
    return Tap(role) if role else sites.attention_input(layer, cross=True)
