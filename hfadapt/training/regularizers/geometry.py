"""Norms, unit steps and balls of perturbations of word embeddings.

A perturbation is a tuple of tensors [B, T, D], one for each call of the word embeddings in a forward pass: one as a
rule, two where the texts of a pair are encoded separately. Row b of all of them is one example. A *scope* says what is
measured as one: each ``token`` (D numbers), each ``example`` (its T x D numbers of every call) or the whole ``batch``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["NORMS", "SCOPES", "Deltas", "Norm", "Scope", "ascended", "in_ball", "masked", "norms", "units"]

Deltas = tuple[Tensor, ...]
Norm = Literal["inf", "l2"]
Scope = Literal["token", "example", "batch"]
NORMS: tuple[Norm, ...] = ("inf", "l2")
SCOPES: tuple[Scope, ...] = ("token", "example", "batch")


def norms(deltas: Deltas, norm: Norm, scope: Scope) -> Deltas:
    """Return the norm of each scope, shaped so that it broadcasts against each tensor of ``deltas``."""
    if scope == "token":
        return tuple(_norm(one, norm).unsqueeze(-1) for one in deltas)
    if scope == "example":
        found = _norm(torch.cat([one.flatten(1) for one in deltas], 1), norm)
        return tuple(found.view(-1, *(1,) * (one.dim() - 1)) for one in deltas)
    found = _norm(torch.cat([one.flatten() for one in deltas]), norm)
    return tuple(found.view((1,) * one.dim()) for one in deltas)


def _norm(values: Tensor, norm: Norm) -> Tensor:
    """Norm over the last axis; an l2 norm is taken of values scaled to 1, so that no square underflows."""
    largest = values.abs().amax(-1)
    if norm == "inf":
        return largest
    scale = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    return scale * torch.linalg.vector_norm(values / scale.unsqueeze(-1), dim=-1)


def units(gradients: Deltas, norm: Norm, scope: Scope) -> Deltas:
    """Return gradients divided by their norm; those that are zero or not finite give no direction, and so zeros."""

    def unit(gradient: Tensor, size: Tensor) -> Tensor:
        usable = (size > 0) & size.isfinite()
        return torch.where(usable, gradient / torch.where(usable, size, torch.ones_like(size)), 0.0)

    return tuple(unit(g, n) for g, n in zip(gradients, norms(gradients, norm, scope), strict=True))


def in_ball(deltas: Deltas, radius: float, norm: Norm, scope: Scope) -> Deltas:
    """Return the nearest perturbations whose norm is at most ``radius``; the scope does not matter under ``inf``."""
    if norm == "inf":
        return tuple(one.clamp(-radius, radius) for one in deltas)

    def shrunk(delta: Tensor, size: Tensor) -> Tensor:
        return torch.where(size > radius, delta * (radius / size.clamp_min(radius)), delta)

    return tuple(shrunk(d, n) for d, n in zip(deltas, norms(deltas, norm, scope), strict=True))


def ascended(
    deltas: Deltas, gradients: Deltas, *, step_size: float, radius: float | None, norm: Norm, scope: Scope
) -> Deltas:
    """Return ``Proj(delta + step_size * g / |g|)``: the gradient is normalised, a step is made, the sum is projected.

    Args:
        deltas: Where the search is.
        gradients: Of what is to grow.
        step_size: Length of the step.
        radius: Of the ball; ``None`` for no projection.
        norm: Measures gradient and ball.
        scope: What is measured as one.
    """
    steps = units(gradients, norm, scope)
    moved = tuple(d.detach() + step_size * s for d, s in zip(deltas, steps, strict=True))
    return moved if radius is None else in_ball(moved, radius, norm, scope)


def masked(deltas: Deltas, masks: tuple[Tensor | None, ...]) -> Deltas:
    """Return perturbations that are zero where the text is padded; masks are [B, T], ``None`` for no padding."""
    return tuple(
        one if mask is None else torch.where(mask.bool().unsqueeze(-1), one, 0.0)
        for one, mask in zip(deltas, masks, strict=True)
    )
