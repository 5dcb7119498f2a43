"""Config of projected attention layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig

from ..shared import INITS, require_activation
from ..shared.positions import POSITIONS

__all__ = ["PAL"]

_MOST_HEADS = 1024  # that an error looks through for the nearest that divides


@dataclass(frozen=True)
class PAL(MethodConfig):
    """``TS(h) = act(V_D g(V_E h))`` beside every layer, V_E and V_D shared by a task's layers.

    Args:
        size: d_s, the width of g: 204 in the paper, 84 without sharing, 276 on half of the layers.
        g: ``"attention"``, multi-head attention without an output projection, or ``"ffn"``, one hidden layer.
        num_heads: Heads of the attention, a divisor of ``size``: 12 in the paper, 6 in its published code.
        share: Share V_E and V_D across the layers of one task, which is the paper's PAL; never across tasks.
        activation: Applied after V_D: ``"identity"`` in the paper, ``"gelu"`` in its published code.
        bias: Whether the projections have biases, as in the code; the paper writes none.
        inner_size: Hidden size of the FFN form; by default 3/2 of ``size``, which has the attention's parameter count.
        inner_activation: Of the FFN form.
        dropout: Of the attention probabilities; 0.1 in the code.
        init: ``"identity"`` starts as the base exactly (V_D = 0); ``"normal"`` draws all from N(0, 0.02), as the code.
        position: ``"layer"`` is the paper's; others in ``hfadapt_plugins.methods.shared.positions``.
        lhuc: Multiply TS(h) by ``2 sigmoid(c)``, one learned c a hidden unit, as the code does when both are on.
    """

    method: ClassVar[str] = "pal"

    size: int = 204
    g: str = "attention"
    num_heads: int = 12
    share: bool = True
    activation: str = "identity"
    bias: bool = True
    inner_size: int | None = None
    inner_activation: str = "gelu"
    dropout: float = 0.1
    init: str = "identity"
    position: str = "layer"
    lhuc: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("size", "num_heads")
        self.require_one_of("g", ("attention", "ffn"))
        self.require_fraction("dropout")
        self.require_one_of("init", INITS)
        self.require_one_of("position", POSITIONS)
        require_activation(self, "activation", "inner_activation")
        if self.inner_size is not None:
            self.require_positive("inner_size")
        if self.g == "attention" and self.size % self.num_heads:
            few = range(1, min(self.size, _MOST_HEADS) + 1)  # a mistyped size may be of any length
            near = min((h for h in few if self.size % h == 0), key=lambda h: abs(h - self.num_heads))
            self.fail(
                "num_heads",
                self.num_heads,
                f"a divisor of size={self.size}",
                f"num_heads={near}, or size={self.size // self.num_heads * self.num_heads or self.num_heads}",
            )

    @property
    def hidden(self) -> int:
        """Hidden size of the FFN form."""
        return self.inner_size if self.inner_size is not None else 3 * self.size // 2
