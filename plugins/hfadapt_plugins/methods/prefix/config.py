"""The config of prefix tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig

from ..shared.gating import check_gate

__all__ = ["ATTENTIONS", "FORMS", "REPARAMETRIZATIONS", "PrefixConfig"]

FORMS = ("concat", "gate_add", "no_gating", "relu")
ATTENTIONS = ("self", "cross")
REPARAMETRIZATIONS = ("mlp", "flat")
TOKENS = ("apart", "behind", "behind_untyped", "keys_behind")


@dataclass(frozen=True)
class PrefixConfig(MethodConfig):
    """``softmax(q [P_k; K]^T) [P_v; V]`` with trained ``P_k`` and ``P_v`` (He et al. 2022, arXiv:2110.04366, eq. 7).

    Args:
        num_virtual_tokens: Length l of the prefix; no limit, for the key-value cache never holds it.
        reparametrization: ``"mlp"`` trains an embedding and a two-layer network, one for each kind of attention and
            all its layers; ``"flat"`` trains keys and values themselves. ``flatten_prefix`` turns the first into the
            second.
        mlp_size: Inner width of that network.
        attention: Which attentions: ``"self"``, ``"cross"``, or both.
        form: ``"concat"`` (the gated sum, computed as one softmax), ``"gate_add"`` (the same, gate and both parts
            computed apart), ``"no_gating"`` (``attention + softmax(q P_k^T) P_v``) or ``"relu"``
            (``attention + relu(q P_k^T) P_v``: the multi-head parallel adapter with frozen queries).
        query_norm: Let the added part of ``no_gating`` and ``relu`` read ``W_q LN(x)``, without the attention's scale
            on the products, with a trained LayerNorm: what the published BART code computes for ``relu``.
        dropout: Dropout on the prefix itself.
        gate: ``"none"``, ``"token"``, ``"mean"`` or ``"mean_padded"``: UniPELT's gate, a factor on ``P_k`` and ``P_v``
            (a row's, so ``"token"`` is not possible).
        init_std: Standard deviation of the flat prefix and of the embedding.
        tokens: Where a row's own tokens stand: ``"apart"``, at the positions that they have without a prefix;
            ``"behind"``, at those behind it, as peft trains it; ``"behind_untyped"``, and their token types count as 0,
            as peft does for tasks without a head; the longest input is then shorter by the prefix. ``"keys_behind"``:
            keys count their distances from behind the prefix and queries do not, as adapters computes T5.
    """

    method: ClassVar[str] = "prefix"

    num_virtual_tokens: int = 30
    reparametrization: str = "mlp"
    mlp_size: int = 800
    attention: tuple[str, ...] = ("self", "cross")
    form: str = "concat"
    query_norm: bool = False
    dropout: float = 0.0
    gate: str = "none"
    init_std: float = 0.02
    tokens: str = "apart"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.attention,) if isinstance(self.attention, str) else tuple(self.attention)
        object.__setattr__(self, "attention", given)
        self.require_positive("num_virtual_tokens", "mlp_size")
        self.require_one_of("reparametrization", REPARAMETRIZATIONS)
        self.require_one_of("form", FORMS)
        self.require_one_of("query_norm", (True, False))
        self.require_fraction("dropout")
        check_gate(self)
        if not given or any(a not in ATTENTIONS for a in given) or len(set(given)) != len(given):
            self.fail("attention", given, "'self', 'cross', or both")
        if self.gate == "token":
            self.fail("gate", self.gate, "'none', 'mean' or 'mean_padded'", "the prefix has one gate a row")
        if self.query_norm and self.form not in ("no_gating", "relu"):
            self.fail("query_norm", True, "False with the forms 'concat' and 'gate_add'")
        if self.query_norm and self.gate != "none":
            self.fail("query_norm", True, "False with a gate")
        self.require_one_of("tokens", TOKENS)
        ungated = self.gate == "none" or self.tokens == "keys_behind"
        if self.tokens != "apart" and ("self" not in given or self.form != "concat" or not ungated):
            self.fail("tokens", self.tokens, "'apart' unless attention has 'self', form='concat' and gate='none'")
        if not isinstance(self.init_std, (int, float)) or isinstance(self.init_std, bool) or self.init_std <= 0:
            self.fail("init_std", self.init_std, "a number above 0")
