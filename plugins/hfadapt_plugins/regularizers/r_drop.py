"""R-Drop: two dropout masks of one batch must agree (Wu et al., NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hfadapt.errors import ConfigError
from hfadapt.training.regularizers import Cost, Regularizer, Step, divergence

__all__ = ["RDrop"]


@dataclass(frozen=True)
class RDrop(Regularizer):
    """``(L_1 + L_2) / 2 + weight (KL(P_1||P_2) + KL(P_2||P_1)) / 2`` over two passes with their own dropout masks.

    The first pass draws the masks that a step without it would draw.
    """

    name: ClassVar[str] = "r_drop"
    paper: ClassVar[str] = "Wu et al. 2021"
    summary: ClassVar[str] = "two dropout masks of one batch must agree"
    perturbs_words: ClassVar[bool] = False

    def check_model(self, module: nn.Module) -> None:
        """Refuse a model without dropout, whose two passes are one."""
        config = getattr(getattr(module, "base", module), "config", None)
        named = {k: v for k, v in vars(config).items() if "drop" in k} if config is not None else {}
        rates = [m.p for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        rates += [v for v in named.values() if isinstance(v, (int, float))]
        if not any(rate > 0 for rate in rates):
            raise ConfigError(
                "the model has no dropout, so both passes are the same and nothing is regularised",
                where=f"r_drop on {type(module).__name__}",
                got="every dropout probability is 0",
                allowed="a probability above 0 somewhere in it",
                try_="a config with hidden_dropout_prob=0.1; or smart, r3f, which need no dropout",
            )

    def loss(self, step: Step) -> Tensor:
        """The mean loss of both passes, and how far they lie apart."""
        first, second = step.clean, step.other_dropout()
        term = divergence(first.answers, second.answers) / 2
        return (first.loss + second.loss) / 2 + step.term_scale * self.weight * term

    def cost(self) -> Cost:
        """Two passes forward and backward."""
        return Cost(2, 0, 2)
