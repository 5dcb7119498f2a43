"""SMART: smoothness-inducing adversarial regularization and Bregman proximal points (Jiang et al., ACL 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfadapt.errors import ConfigError
from hfadapt.errors.limits import require_number
from hfadapt.training.regularizers import (
    CRITERIA,
    NORMS,
    SCOPES,
    Answers,
    Cost,
    Deltas,
    Norm,
    Pass,
    Proximal,
    Regularizer,
    Scope,
    Step,
    ascended,
    divergence,
    masked,
    released_squares,
    stable_kl,
)

__all__ = ["SMART", "first_ascent", "released_ascent"]

#: What a field holds that was not given, by mode.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "paper": {"epsilon": 1e-5, "step_size": 1e-3, "proximal": "momentum"},
    "mtdnn": {"epsilon": 1e-6, "step_size": 1e-5, "proximal": "none"},
    "mtdnn_first": {"epsilon": 1e-6, "step_size": 1e-3, "proximal": "none"},
}


@dataclass(frozen=True)
class SMART(Regularizer):
    """``L + weight R_s + mu D_Breg``; R_s is the largest divergence in a ball round the word embeddings.

    ``mode="paper"`` is Algorithm 1: noise, then ``inner_steps`` times a step along the normalised gradient of the
    divergence and a projection on the ball. ``mode="mtdnn"`` computes what the released code does (namisan/mt-dnn at
    3228e7c, ``perturbation.py``): the inner loss is no divergence, epsilon guards a denominator and bounds nothing, the
    noise ends near norm 1 a token, padding is perturbed, and answers of a regression are compared in B x B pairs. Its
    double embedding is left out: all modes perturb the output of the word embeddings. ``mode="mtdnn_first"`` is the
    release of April 2020 (5af3326): one step on ``sym_kl`` itself, the gradient normalised, then noise and direction
    both scaled by ``step_size`` and masked, no projection, and no gradient from the perturbed pass to the words.

    Args:
        mode: ``paper``, ``mtdnn`` or ``mtdnn_first``.
        epsilon: Radius of the ball; in the other modes a guard. Default 1e-5, there 1e-6.
        sigma: Deviation of the noise to start from.
        step_size: eta. Default 1e-3, in mode ``mtdnn`` 1e-5.
        inner_steps: Ascent steps; one in mode ``mtdnn_first``.
        norm: Of the ball and of the gradient, ``inf`` or ``l2``.
        scope: What gradients, and l2 balls, are measured over: each ``token``, each ``example`` or the ``batch``.
        smoothness: Whether R_s is computed; without it the Bregman term is left.
        proximal: ``momentum`` (a mean teacher), ``vanilla`` (the last iterate) or ``none``. Default momentum, in mode
            ``mtdnn`` and ``mtdnn_first`` none.
        mu: Weight of the Bregman term.
        momentum: beta of the teacher, early and late.
        momentum_switch: Up to which share of the run the early one holds; above 1, how many updates of the teacher.
        solves: S, optimizer steps to an update of the teacher.
        criterion: In mode ``mtdnn`` the final loss: ``sym_kl``, ``kl``, ``ns_kl``, ``ns_sym_kl`` or ``js``.
    """

    mode: Literal["paper", "mtdnn", "mtdnn_first"] = "paper"
    epsilon: float | None = None
    sigma: float = 1e-5
    step_size: float | None = None
    inner_steps: int = 1
    norm: Norm = "inf"
    scope: Scope = "token"
    smoothness: bool = True
    proximal: Literal["momentum", "vanilla", "none"] | None = None
    mu: float = 1.0
    momentum: tuple[float, float] = (0.99, 0.999)
    momentum_switch: float = 0.1
    solves: int = 1
    criterion: str = "sym_kl"

    name: ClassVar[str] = "smart"
    paper: ClassVar[str] = "Jiang et al. 2020"
    summary: ClassVar[str] = "worst-case divergence round the word embeddings, and a proximal teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one_of("mode", _DEFAULTS)
        for name, value in _DEFAULTS[self.mode].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self.require_positive("epsilon", "sigma", "step_size")
        self.require_count("inner_steps", "solves")
        self.require_one_of("norm", NORMS)
        self.require_one_of("scope", SCOPES)
        self.require_one_of("proximal", ("momentum", "vanilla", "none"))
        self.require_one_of("criterion", CRITERIA)
        if not isinstance(self.smoothness, bool):
            self.fail("smoothness", self.smoothness, "true or false")
        require_number("mu", self.mu, where="SMART(mu=...)", least=0)
        require_number("momentum_switch", self.momentum_switch, where="SMART(momentum_switch=...)", least=0)
        self._check_momentum()
        if self.mode != "mtdnn" and self.criterion != "sym_kl":
            self.fail("criterion", self.criterion, f"'sym_kl' in mode {self.mode!r}", "mode='mtdnn'")
        if self.mode != "paper" and (self.norm, self.scope) != ("inf", "token"):
            got, allowed = (
                f"norm={self.norm!r}, scope={self.scope!r}",
                f"norm='inf', scope='token' in mode {self.mode!r}",
            )
            self.fail("norm", got, f"{allowed}, which knows no others", "mode='paper'")
        if self.mode == "mtdnn_first" and self.inner_steps != 1:
            self.fail("inner_steps", self.inner_steps, "1 in mode 'mtdnn_first'", "mode='mtdnn'")
        if not self.smoothness and (self.proximal == "none" or not self.mu):
            self.fail(
                "smoothness", self.smoothness, "true, unless a proximal point is left", "weight=0 turns SMART off"
            )

    def _check_momentum(self) -> None:
        momentum: object = tuple(self.momentum) if isinstance(self.momentum, (list, tuple)) else self.momentum
        if not (isinstance(momentum, tuple) and len(momentum) == 2):
            self.fail("momentum", self.momentum, "two numbers, early and late", "momentum=(0.99, 0.999)")
        for beta in self.momentum:
            require_number("momentum", beta, where="SMART(momentum=...)", least=0, below=1)
        object.__setattr__(self, "momentum", momentum)

    @property
    def radius(self) -> float | None:
        """epsilon, the ball's; the release bounds nothing."""
        return self.epsilon if self.mode == "paper" and self.smoothness else None

    def proximal_point(self) -> Proximal | None:
        """How the teacher follows: the last iterate is a teacher without momentum."""
        if self.proximal == "none" or not self.mu:
            return None
        momentum = self.momentum if self.proximal == "momentum" else (0.0, 0.0)
        return Proximal(momentum, self.momentum_switch, self.solves)

    def check_run(self, updates: int, optimizer: Any) -> None:
        """Refuse schedules of the teacher that the run would not reach the end of."""
        if self.proximal_point() is None:
            return
        for name, needed in (("solves", self.solves), ("momentum_switch", self.momentum_switch * self.solves)):
            given = getattr(self, name)
            if given > 1 and needed > updates:
                self.fail(
                    name, given, f"at most the run's {updates} optimizer steps", f"a longer run, or a smaller {name}"
                )

    def loss(self, step: Step) -> Tensor:
        """The task's loss, and the terms."""
        loss = step.clean.loss
        if self.smoothness:
            term = {"paper": self.smooth, "mtdnn": self.released, "mtdnn_first": self.first_released}[self.mode](step)
            loss = loss + step.term_scale * self.weight * term
        if self.proximal_point() is not None:
            loss = loss + step.term_scale * self.mu * divergence(step.reference, step.teach())
        return loss

    def smooth(self, step: Step) -> Tensor:
        """R_s of Algorithm 1: the divergence where the search ends, with its gradient on both sides."""
        assert self.epsilon is not None and self.step_size is not None  # __post_init__ fills them
        clean = tuple(one.detach() for one in step.reference)
        at: Any = step.drawn("normal", self.sigma)
        for _ in range(self.inner_steps):
            found, gradients = step.search(at, lambda one: divergence(one.answers, clean))
            moved = ascended(
                found.deltas,
                gradients,
                step_size=self.step_size,
                radius=self.epsilon,
                norm=self.norm,
                scope=self.scope,
            )
            at = masked(moved, found.masks)
        return divergence(step.perturb(at).answers, step.reference)

    def released(self, step: Step) -> Tensor:
        """What mt-dnn adds to the loss."""
        assert self.epsilon is not None and self.step_size is not None  # __post_init__ fills them
        clean = tuple(one.detach() for one in step.reference)
        at: Any = step.drawn("normal", self.sigma, padding=True)
        for _ in range(self.inner_steps):
            found, gradients = step.search(at, lambda one: _released_inner(one, clean))
            at = released_ascent(found.deltas, gradients, self.step_size, self.epsilon)
        adversarial = step.perturb(at).answers
        total = adversarial[0].logits.new_zeros(())
        for one, other in zip(step.reference, adversarial, strict=True):
            compare = released_squares if one.kind == "numbers" else CRITERIA[self.criterion]
            total = total + one.share * compare(one.logits, other.logits)
        return total

    def first_released(self, step: Step) -> Tensor:
        """What mt-dnn added to the loss in April 2020."""
        assert self.epsilon is not None and self.step_size is not None  # __post_init__ fills them
        clean = tuple(one.detach() for one in step.reference)
        found, gradients = step.search(step.drawn("normal", self.sigma), lambda one: _criterion(clean, one.answers))
        at = masked(first_ascent(found.deltas, gradients, self.step_size, self.epsilon), found.masks)
        return _criterion(step.reference, step.perturb(at, words=False).answers)

    def cost(self) -> Cost:
        """The clean pass, K searches, the pass at their end, and the teacher's."""
        k = self.inner_steps if self.smoothness else 0
        return Cost(1 + k + bool(k) + (self.proximal_point() is not None), k, 1 + bool(k))


def _criterion(clean: Answers, adversarial: Answers) -> Tensor:
    total = adversarial[0].logits.new_zeros(())
    for one, other in zip(clean, adversarial, strict=True):
        if one.kind != "classes":
            raise ConfigError(
                f"the first release's loss is one of classes, and a task's answers are {one.kind}",
                where="SMART(mode='mtdnn_first')",
                got=one.kind,
                allowed="classification",
                try_="mode='paper'",
            )
        total = total + one.share * CRITERIA["sym_kl"](one.logits, other.logits)
    return total


def _released_inner(found: Pass, clean: Answers) -> Tensor:
    total = found.answers[0].logits.new_zeros(())
    for one, other in zip(found.answers, clean, strict=True):
        if one.kind == "labels":
            raise ConfigError(
                "the released code knows no multi-label tasks",
                where="SMART(mode='mtdnn')",
                got=one.kind,
                allowed="classification and regression",
                try_="mode='paper'",
            )
        if one.kind == "numbers":
            total = total + F.mse_loss(one.logits, other.logits, reduction="sum")
        else:
            total = total + stable_kl(one.logits, other.logits, reduce=False)
    return total


def released_ascent(noise: Deltas, gradients: Deltas, step_size: float, epsilon: float) -> Deltas:
    """Return ``(noise + eta g) / (max |noise + eta g| + epsilon)``, the maximum over each token; no projection.

    A gradient that is not finite, with which the release crashes, moves nothing.
    """

    def moved(one: Tensor, gradient: Tensor) -> Tensor:
        step = one.detach() + step_size * torch.where(gradient.isfinite().all(), gradient, 0.0)
        return step / (step.abs().amax(-1, keepdim=True) + epsilon)

    return tuple(moved(n, g) for n, g in zip(noise, gradients, strict=True))


def first_ascent(noise: Deltas, gradients: Deltas, step_size: float, epsilon: float) -> Deltas:
    """Return ``eta (noise + g / (max |g| + epsilon))``, the maximum over each token: the noise is scaled too."""

    def moved(one: Tensor, gradient: Tensor) -> Tensor:
        usable = torch.where(gradient.isfinite().all(), gradient, 0.0)
        return step_size * (one.detach() + usable / (usable.abs().amax(-1, keepdim=True) + epsilon))

    return tuple(moved(n, g) for n, g in zip(noise, gradients, strict=True))
