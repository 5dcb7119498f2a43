"""How far two answers of a model lie apart: the losses of SMART and its peers, and those of the released code.

All take logits [N, C]. Those of the first group return one number a row and are differentiated on both sides; those of
``CRITERIA`` are what mt-dnn's ``loss.py`` computes (namisan/mt-dnn at 3228e7c), means over rows with their own
conventions on what has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CRITERIA",
    "DIVERGENCES",
    "Kind",
    "bernoulli_symmetric_kl",
    "kl",
    "released_squares",
    "squared",
    "stable_kl",
    "symmetric_kl",
]

#: What logits say: one of C classes, C numbers, or which of C labels hold.
Kind = Literal["classes", "numbers", "labels"]


def symmetric_kl(left: Tensor, right: Tensor) -> Tensor:
    """``KL(P||Q) + KL(Q||P) = sum_c (p_c - q_c) (log p_c - log q_c)`` of each row, [N].

    One sum and not two, so that no term is negative and small divergences survive rounding.
    """
    p, q = left.log_softmax(-1), right.log_softmax(-1)
    # classes that are masked out have log-probabilities of -inf on both sides
    difference = torch.where(p.isneginf() & q.isneginf(), 0.0, p - q)
    return ((p.exp() - q.exp()) * difference).sum(-1)


def kl(left: Tensor, right: Tensor) -> Tensor:
    """``KL(P||Q)`` of each row, [N]; P is that of ``left``."""
    p, q = left.log_softmax(-1), right.log_softmax(-1)
    difference = torch.where(p.isneginf() & q.isneginf(), 0.0, p - q)
    return (p.exp() * difference).sum(-1)


def bernoulli_symmetric_kl(left: Tensor, right: Tensor) -> Tensor:
    """Symmetric KL between the probabilities of each label, mean over labels, [N]: ``(p - q)(logit p - logit q)``."""
    return ((left.sigmoid() - right.sigmoid()) * (left - right)).mean(-1)


def _bernoulli_kl(left: Tensor, right: Tensor) -> Tensor:
    p = left.sigmoid()
    here = p * (F.logsigmoid(left) - F.logsigmoid(right))
    not_here = (1 - p) * (F.logsigmoid(-left) - F.logsigmoid(-right))
    return (here + not_here).mean(-1)


def squared(left: Tensor, right: Tensor) -> Tensor:
    """Squared difference of each row, mean over its numbers, [N]."""
    return (left - right).square().mean(-1)


#: Symmetric and one-directional divergence of each kind of answer.
DIVERGENCES: dict[Kind, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "classes": (symmetric_kl, kl),
    "labels": (bernoulli_symmetric_kl, _bernoulli_kl),
    "numbers": (squared, squared),
}


def stable_kl(logits: Tensor, target: Tensor, epsilon: float = 1e-6, reduce: bool = True) -> Tensor:
    """mt-dnn's stand-in for a KL divergence: ``2 sum p (lo(p) - lo(y))`` with detached log-odds; it is none.

    Args:
        logits: [N, C]; only its probabilities have a gradient.
        target: [N, C].
        epsilon: Guard of the log-odds.
        reduce: Divide the sum by N.
    """
    rows = logits.shape[0]
    p = F.log_softmax(logits.float(), -1).exp()
    y = F.log_softmax(target.float().detach(), -1).exp()
    odds_p = -(1.0 / (p + epsilon) - 1 + epsilon).detach().log()
    odds_y = -(1.0 / (y + epsilon) - 1 + epsilon).detach().log()
    total = (p * (odds_p - odds_y) * 2).sum()
    return total / rows if reduce else total


def _kl(logits: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits.float(), -1), F.softmax(target.float(), -1), reduction="batchmean")


def _sym_kl(logits: Tensor, target: Tensor) -> Tensor:
    return _kl(logits, target.detach()) + _kl(target, logits.detach())


def _ns_kl(logits: Tensor, target: Tensor) -> Tensor:
    return stable_kl(logits, target.detach())


def _ns_sym_kl(logits: Tensor, target: Tensor) -> Tensor:
    return stable_kl(logits, target.detach()) + stable_kl(target, logits.detach())


def _js(logits: Tensor, target: Tensor) -> Tensor:
    middle = (F.softmax(target.detach().float(), -1) + F.softmax(logits.detach().float(), -1)) * 0.5
    return F.kl_div(F.log_softmax(logits.float(), -1), middle, reduction="batchmean") + F.kl_div(
        F.log_softmax(target.float(), -1), middle, reduction="batchmean"
    )


#: Final losses of the released code, ``criterion(clean, adversarial)``; targets are detached, but for that of ``kl``.
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sym_kl": _sym_kl,
    "kl": _kl,
    "ns_kl": _ns_kl,
    "ns_sym_kl": _ns_sym_kl,
    "js": _js,
}


def released_squares(clean: Tensor, adversarial: Tensor) -> Tensor:
    """The release's loss of a regression: answers [B] against [B, 1] make B x B pairs, of which this is the mean."""
    return (clean.reshape(-1)[None, :] - adversarial.reshape(-1)[:, None]).square().mean()
