"""The config of parallel adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig, Site

from ..shared import INITS, UpDown, require_activation, require_scale

__all__ = ["SUBLAYERS", "ParallelConfig"]

SUBLAYERS = ("ffn", "attention", "self", "cross")


@dataclass(frozen=True)
class ParallelConfig(MethodConfig):
    """``h + s (U act(D x + b) + b')`` with x the sub-layer's input (He et al. 2022, arXiv:2110.04366, table 1).

    Args:
        r: Width of the bottleneck; of every head with ``by_head``.
        scale: s, a number, ``"learned"`` (one a place) or ``"channel"`` (one a hidden unit). It multiplies the bias of
            the second projection too.
        sublayers: ``"ffn"``, ``"attention"`` (every attention of a layer), ``"self"`` or ``"cross"`` attention alone.
            Beside the FFN the adapter reads the residual stream, before a pre-norm; in attention it reads what the
            query projection reads and adds to the concatenated heads, before W_o.
        by_head: In attention, a bottleneck of r for every head, each changing its own head only: the multi-head
            parallel adapter with free projections. (The one with frozen queries is ``PrefixConfig(form="relu")``.)
        non_linearity: act, a name in ``hfadapt_kernels.ACTIVATIONS``.
        bias: Biases in both projections.
        norm_before: A LayerNorm of the adapter's own on x; the published code has it in attention.
        dropout: Probability of dropping a unit of the bottleneck.
        init: ``"identity"`` (Kaiming-uniform D, zero U: starts as the base) or ``"normal"`` (N(0, 0.02)).
    """

    method: ClassVar[str] = "parallel"

    r: int = 512
    scale: float | str = 4.0
    sublayers: tuple[str, ...] = ("ffn",)
    by_head: bool = False
    non_linearity: str = "relu"
    bias: bool = True
    norm_before: bool = False
    dropout: float = 0.0
    init: str = "identity"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.sublayers
        words = (given,) if isinstance(given, str) else tuple(given)
        words = ("ffn", "attention") if words == ("both",) else words
        object.__setattr__(self, "sublayers", words)
        if not words or any(w not in SUBLAYERS for w in words) or len(set(words)) != len(words):
            self.fail("sublayers", given, f"one or more of {', '.join(map(repr, SUBLAYERS))}, or 'both'")
        if "attention" in words and {"self", "cross"} & set(words):
            self.fail("sublayers", given, "'attention' alone, which stands for both of its kinds")
        self.require_positive("r")
        require_scale(self)
        require_activation(self, "non_linearity")
        self.require_fraction("dropout")
        self.require_one_of("init", INITS)
        for name in ("by_head", "bias", "norm_before"):
            self.require_one_of(name, (True, False))
        if self.by_head and "ffn" in words:
            self.fail("by_head", True, "attention sub-layers only", "sublayers=('attention',): the FFN has no heads")

    def updown(self, site: Site) -> UpDown:
        """Return the form of the delta at ``site``."""
        return UpDown(
            self.r,
            self.non_linearity,
            bias=self.bias,
            dropout=self.dropout,
            scale=self.scale,
            init=self.init,
            norm_before=self.norm_before,
        )
