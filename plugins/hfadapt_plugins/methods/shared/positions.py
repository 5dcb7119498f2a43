"""Where the task function TS of PALs stands in a layer."""

from __future__ import annotations

from hfadapt import Site
from hfadapt.architecture import LayerMap
from hfadapt.method import sites

__all__ = ["POSITIONS", "task_function_site"]

POSITIONS = ("layer", "ffn", "serial")
"""``layer``: beside the whole layer, ``h' = LN(h + SA(h) + TS(h))`` (equation 8). ``ffn``: beside the FFN, from its
input a: ``h' = LN(a + f + TS(a))``, as the published code has it in its Houlsby-like models. ``serial``: behind the
layer with a new norm, ``h' = LN'(t + TS(t))`` with ``t = LN(h + SA(h))`` (equations 9 and 10)."""


def task_function_site(layer: LayerMap, position: str) -> Site:
    """Return the site of TS at one of ``POSITIONS``."""
    if position == "serial":
        return sites.layer_output(layer)
    if position == "layer" or not layer.has("ffn"):  # a layer of one sub-layer has one sum
        return sites.layer_sum(layer)
    return sites.ffn_sum(layer, sites.ffn_input(layer))
