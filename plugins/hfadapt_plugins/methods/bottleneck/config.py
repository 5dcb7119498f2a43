"""Config of bottleneck adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hfadapt import MethodConfig, Site

from ..shared import INITS, UpDown, require_activation, require_scale

__all__ = ["Bottleneck", "LayerNorms"]

SUBLAYERS = ("attention", "cross", "ffn")


@dataclass(frozen=True)
class LayerNorms:
    """Where norms stand around a bottleneck adapter; names and meanings as in AdapterHub.

    With f the sub-layer's output, a its residual, LN the base's closing norm and u the adapter, a serial adapter in a
    post-norm model gives ``LN(u(f) + f + a)``.

    Args:
        original_ln_before: u reads ``LN(f + a)`` in place of f; ``f + a`` where no norm closes the sub-layer.
        original_ln_after: LN and the residual a come after the adapter. False puts the adapter behind LN.
        residual_before_ln: f is added to u's result; False adds ``LN(f + a)``.
        ln_before: A new LayerNorm on what u reads.
        ln_after: A new LayerNorm on u's result.
        adapter_residual_before_ln: With ``ln_after``, the new norm also covers the f that is added.
    """

    original_ln_before: bool = False
    original_ln_after: bool = True
    residual_before_ln: bool = True
    ln_before: bool = False
    ln_after: bool = False
    adapter_residual_before_ln: bool = False


@dataclass(frozen=True)
class Bottleneck(MethodConfig):
    """``u(x) = s (U act(D x + b) + b')`` on attention, FFN or both, serial or parallel.

    Args:
        size: Width of the bottleneck; overrides ``reduction_factor``.
        reduction_factor: The hidden size divided by this is the width.
        non_linearity: act, a name in ``hfadapt_kernels.ACTIVATIONS`` or one of their usual aliases.
        on: The sub-layers that get an adapter: any of ``"attention"``, ``"cross"`` and ``"ffn"``.
        is_parallel: Read the sub-layer's input (the residual stream) in place of its output.
        scaling: s, a number, ``"learned"`` or ``"channel"``.
        norms: Where norms stand.
        dropout: Probability of dropping a unit of the bottleneck.
        init: ``"normal"`` draws from N(0, 0.02); ``"identity"`` starts as the base exactly.
        use_gating: Multiply u by a learned gate of each row (UniPELT), the mean over its real tokens;
            ``"mean_padded"`` averages over padding too, as the published code and AdapterHub do.
        share: One adapter a sub-layer for all layers of a stack (AdapterDrop, cross-layer sharing).
    """

    method: ClassVar[str] = "bottleneck"

    size: int | None = None
    reduction_factor: float = 16
    non_linearity: str = "relu"
    on: tuple[str, ...] = ("ffn",)
    is_parallel: bool = False
    scaling: float | str = 1.0
    norms: LayerNorms = field(default_factory=LayerNorms)
    dropout: float = 0.0
    init: str = "normal"
    use_gating: bool | str = False
    share: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.on, str):
            object.__setattr__(self, "on", (self.on,))
        if isinstance(self.norms, Mapping):
            self._read_norms(self.norms)
        if not isinstance(self.norms, LayerNorms):
            self.fail("norms", self.norms, "LayerNorms(...)")
        if self.size is not None:
            self.require_positive("size")
        if not isinstance(self.reduction_factor, (int, float)) or self.reduction_factor <= 0:
            self.fail("reduction_factor", self.reduction_factor, "a number > 0")
        object.__setattr__(self, "on", tuple(self.on))
        if not self.on or any(s not in SUBLAYERS for s in self.on) or len(set(self.on)) != len(self.on):
            self.fail("on", self.on, f"one or more of {', '.join(map(repr, SUBLAYERS))}")
        require_activation(self, "non_linearity")
        require_scale(self, "scaling")
        self.require_fraction("dropout")
        self.require_one_of("init", INITS)
        self.require_one_of("use_gating", (False, True, "mean_padded"))
        norms = self.norms
        if not norms.original_ln_after and (norms.residual_before_ln or not norms.original_ln_before):
            self.fail(
                "norms",
                norms,
                "original_ln_after=False only with original_ln_before=True and residual_before_ln=False",
                "without the two the sub-layer's residual would be lost",
            )
        if self.is_parallel and norms not in (LayerNorms(ln_before=norms.ln_before, ln_after=norms.ln_after),):
            self.fail("norms", norms, "with is_parallel, only ln_before and ln_after")

    def _read_norms(self, data: Mapping[str, Any]) -> None:
        known = [f.name for f in dataclasses.fields(LayerNorms)]
        unknown = [name for name in data if name not in known]
        if unknown:
            self.fail("norms", unknown[0], ", ".join(known))
        object.__setattr__(self, "norms", LayerNorms(**data))

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "norms": dataclasses.asdict(self.norms)}

    def size_for(self, width: int) -> int:
        """Return the bottleneck's width in a stack of hidden size ``width``."""
        return self.size if self.size is not None else max(1, int(width // self.reduction_factor))

    def updown(self, site: Site) -> UpDown:
        """Return the form of the delta at ``site``."""
        return UpDown(
            self.size_for(site.width),
            self.non_linearity,
            dropout=self.dropout,
            scale=self.scaling,
            init=self.init,
            norm_before=self.norms.ln_before,
            norm_after=("sum" if self.norms.adapter_residual_before_ln else "delta") if self.norms.ln_after else "",
            gate="mean" if self.use_gating is True else self.use_gating or "",
        )
