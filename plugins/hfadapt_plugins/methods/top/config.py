"""Configs of the task functions on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig

from ..shared import require_activation

__all__ = ["TopAttention", "TopConfig", "TopFFN", "TopLayer", "TopLinear"]


@dataclass(frozen=True)
class TopConfig(MethodConfig):
    """What the task functions on top have in common: they read and replace a stack's last hidden state.

    With ``stack="all"`` an encoder-decoder model gets one on its decoder; ``stack="encoder"`` chooses the encoder.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers != "all":
            self.fail("layers", self.layers, "'all'", "it stands on top of the last layer, whatever that is")


@dataclass(frozen=True)
class TopLayer(TopConfig):
    """One more transformer layer a task, in BERT's post-norm form.

    Args:
        num_heads: By default as many as the base has.
        inner_size: Hidden size of its FFN, by default that of the base.
        activation: Of its FFN.
        dropout: Of its attention probabilities, attention output and FFN output.
    """

    method: ClassVar[str] = "top_layer"

    num_heads: int | None = None
    inner_size: int | None = None
    activation: str = "gelu"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive(*(n for n in ("num_heads", "inner_size") if getattr(self, n) is not None))
        require_activation(self, "activation")
        self.require_fraction("dropout")


@dataclass(frozen=True)
class TopAttention(TopConfig):
    """``V_D (z_n)`` with ``z_0 = V_E x`` and ``z_{i+1} = LN(z_i + W_o MHA(z_i))``: projected attention on top.

    Args:
        size: d_s, the width of z; 204 in the paper.
        num_layers: n; six did better than three or twelve.
        num_heads: Heads, a divisor of ``size``.
        residual: Add z_i; the paper calls it crucial.
        norm: Norm after each attention; the paper calls it crucial.
        dropout: Of the attention probabilities and of W_o's output.
    """

    method: ClassVar[str] = "top_attention"

    size: int = 204
    num_layers: int = 6
    num_heads: int = 12
    residual: bool = True
    norm: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("size", "num_layers", "num_heads")
        self.require_fraction("dropout")
        if self.size % self.num_heads:
            self.fail("num_heads", self.num_heads, f"a divisor of size={self.size}")


@dataclass(frozen=True)
class TopFFN(TopConfig):
    """``V_D (z_n)`` with ``z_0 = V_E x`` and ``z_{i+1} = LN(z_i + FFN(z_i))``: projected FFNs on top.

    Args:
        size: d_s, the width of z; 204 in the paper.
        num_layers: n; six in the paper.
        hidden_layers: Hidden layers of each FFN, one or two.
        inner_size: Their width; by default 2 ``size`` (408 for 204) with one hidden layer, and with two the width of
            the same parameter count (252 for 204).
        activation: Between their layers.
        residual: Add z_i.
        norm: Norm after each FFN.
        dropout: Of each FFN's output.
    """

    method: ClassVar[str] = "top_ffn"

    size: int = 204
    num_layers: int = 6
    hidden_layers: int = 1
    inner_size: int | None = None
    activation: str = "gelu"
    residual: bool = True
    norm: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("size", "num_layers", *(["inner_size"] if self.inner_size is not None else []))
        self.require_one_of("hidden_layers", (1, 2))
        self.require_fraction("dropout")
        require_activation(self, "activation")

    @property
    def hidden(self) -> int:
        """Width of the hidden layers."""
        if self.inner_size is not None:
            return self.inner_size
        if self.hidden_layers == 1:
            return 2 * self.size
        return round((5**0.5 - 1) * self.size)  # solves 2 S I + I^2 = 4 S^2


@dataclass(frozen=True)
class TopLinear(TopConfig):
    """``act(W x + b)`` with a square W a task.

    Args:
        activation: act.
        init: ``"identity"`` starts W as the identity matrix; ``"normal"`` draws from N(0, 0.02).
    """

    method: ClassVar[str] = "top_linear"

    activation: str = "tanh"
    init: str = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_activation(self, "activation")
        self.require_one_of("init", ("identity", "normal"))
