"""The config of AdapterFusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hfadapt import MethodConfig

__all__ = ["FusionConfig", "read_config"]


@dataclass(frozen=True)
class FusionConfig(MethodConfig):
    """``sum_n p_n V u_n`` with ``p = softmax_n((Q x + b) . (K u_n + c))`` (Pfeiffer et al. 2021, arXiv:2005.00247).

    u_n is what adapter n adds; scores are not divided by the root of the width. The defaults are AdapterHub's
    ``dynamic``; ``FusionConfig.static()`` has no value matrix.

    Args:
        query: Q is trained; else the identity.
        key: K is trained; else the identity.
        value: V is trained, starting near the identity; else the identity.
        query_before_ln: x is the sub-layer's output f in place of what the adapters read, ``LN(f + a)``.
        regularization: ``fusion_regularizer`` keeps V near the identity.
        regularization_weight: Its factor.
        residual_before: The residual f is added to every u_n, and not behind V.
        temperature: Scores are divided by a temperature that falls from 50 to 1 over the first 1000 training steps.
        dropout: Dropout on the scores, before the softmax.
    """

    method: ClassVar[str] = "fusion"

    query: bool = True
    key: bool = True
    value: bool = True
    query_before_ln: bool = False
    regularization: bool = True
    regularization_weight: float = 0.01
    residual_before: bool = False
    temperature: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("query", "key", "value", "query_before_ln", "regularization", "residual_before", "temperature"):
            self.require_one_of(name, (True, False))
        self.require_fraction("dropout")
        weight = self.regularization_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
            self.fail("regularization_weight", weight, "a number >= 0")
        if self.layers != "all" or self.stack != "all":
            self.fail("layers", (self.layers, self.stack), "'all': a fusion is wherever its adapters are")

    @classmethod
    def static(cls, **fields: Any) -> FusionConfig:
        """AdapterHub's ``static``: queries and keys are trained, values are the adapters' outputs."""
        return cls(**{"value": False, "regularization": False, **fields})


def read_config(given: str | FusionConfig | Mapping[str, Any]) -> FusionConfig:
    """Return a config from what a user may write: a config, fields, ``"dynamic"`` or ``"static"``."""
    if isinstance(given, FusionConfig):
        return given
    if isinstance(given, Mapping):
        return FusionConfig.from_dict(given)  # type: ignore[return-value]
    known = {"dynamic": FusionConfig, "static": FusionConfig.static}
    if given not in known:
        FusionConfig().fail("config", given, "'dynamic', 'static', a FusionConfig or its fields")
    return known[given]()
