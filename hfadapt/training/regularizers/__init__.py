"""Regularizers of training: what a plugin author writes one with, and what puts one into a plain Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors.first_use import on_first_use

if TYPE_CHECKING:
    from ...runtime.embedding_noise import Perturbation, perturbed, word_embeddings
    from .answers import Answer, Answers, answers_of, divergence
    from .blocks import first_block, output_linears
    from .choice import make_regularizer
    from .divergences import (
        CRITERIA,
        DIVERGENCES,
        bernoulli_symmetric_kl,
        kl,
        released_squares,
        squared,
        stable_kl,
        symmetric_kl,
    )
    from .geometry import NORMS, SCOPES, Deltas, Norm, Scope, ascended, in_ball, masked, norms, units
    from .noise import Law, Noise
    from .passes import first_outputs
    from .proximal import Proximal, Teacher, momentum_at
    from .regularization import Regularization, regularize
    from .regularizer import Cost, Regularizer
    from .step import Pass, Step
    from .update import MicroBatch, Update

# the Trainer takes seconds to import: names are resolved on first use
_HOMES = {
    **dict.fromkeys(("Answer", "Answers", "answers_of", "divergence"), ".answers"),
    **dict.fromkeys(("first_block", "output_linears"), ".blocks"),
    "make_regularizer": ".choice",
    **dict.fromkeys(("CRITERIA", "DIVERGENCES", "bernoulli_symmetric_kl", "kl", "released_squares"), ".divergences"),
    **dict.fromkeys(("squared", "stable_kl", "symmetric_kl"), ".divergences"),
    **dict.fromkeys(("NORMS", "SCOPES", "Deltas", "Norm", "Scope"), ".geometry"),
    **dict.fromkeys(("ascended", "in_ball", "masked", "norms", "units"), ".geometry"),
    **dict.fromkeys(("Law", "Noise"), ".noise"),
    "first_outputs": ".passes",
    **dict.fromkeys(("Proximal", "Teacher", "momentum_at"), ".proximal"),
    **dict.fromkeys(("Regularization", "regularize"), ".regularization"),
    **dict.fromkeys(("Cost", "Regularizer"), ".regularizer"),
    **dict.fromkeys(("Pass", "Step"), ".step"),
    **dict.fromkeys(("MicroBatch", "Update"), ".update"),
    **dict.fromkeys(("Perturbation", "perturbed", "word_embeddings"), "...runtime.embedding_noise"),
}

__all__ = [
    "CRITERIA",
    "DIVERGENCES",
    "NORMS",
    "SCOPES",
    "Answer",
    "Answers",
    "Cost",
    "Deltas",
    "Law",
    "MicroBatch",
    "Noise",
    "Norm",
    "Pass",
    "Perturbation",
    "Proximal",
    "Regularization",
    "Regularizer",
    "Scope",
    "Step",
    "Teacher",
    "Update",
    "answers_of",
    "ascended",
    "bernoulli_symmetric_kl",
    "divergence",
    "first_block",
    "first_outputs",
    "in_ball",
    "kl",
    "make_regularizer",
    "masked",
    "momentum_at",
    "norms",
    "output_linears",
    "perturbed",
    "regularize",
    "released_squares",
    "squared",
    "stable_kl",
    "symmetric_kl",
    "units",
    "word_embeddings",
]

__getattr__ = on_first_use(__name__, _HOMES)
