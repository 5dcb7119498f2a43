"""Config of low-rank layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig, Site

from ..shared import INITS, UpDown, require_activation
from ..shared.positions import POSITIONS

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank(MethodConfig):
    """``TS(h) = V_D g(V_E h)`` beside every layer, from the layer's input (Stickland & Murray 2019, section 3.2).

    Args:
        size: d_s; the paper uses 100 with eight tasks, and 10 for the smallest models.
        activation: g. The paper has ``"identity"``; its published code has ``"gelu"``.
        bias: Whether V_E and V_D have biases, as in the code; the paper writes none.
        init: ``"identity"`` starts as the base exactly (V_D = 0); ``"normal"`` draws both from N(0, 0.02), as the code.
        dropout: Probability of dropping a unit between V_E and V_D; none in the paper.
        position: ``"layer"`` is the paper's; others in ``hfadapt_plugins.methods.shared.positions``.
        lhuc: Multiply TS(h) by ``2 sigmoid(c)``, one learned c a hidden unit, as the code does when both are on.
    """

    method: ClassVar[str] = "low_rank"

    size: int = 100
    activation: str = "identity"
    bias: bool = True
    init: str = "identity"
    dropout: float = 0.0
    position: str = "layer"
    lhuc: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("size")
        self.require_fraction("dropout")
        self.require_one_of("init", INITS)
        self.require_one_of("position", POSITIONS)
        require_activation(self, "activation")

    def updown(self, site: Site) -> UpDown:
        """Return the form of the delta, the same at every site."""
        return UpDown(
            self.size,
            self.activation,
            self.bias,
            self.dropout,
            "lhuc" if self.lhuc else 1.0,
            self.init,
            norm_after="sum" if self.position == "serial" else "",
            norm_eps=None,
        )
