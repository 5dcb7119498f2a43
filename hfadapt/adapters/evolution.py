"""A search for the numbers of a function that has no gradient: evolution with an adapted covariance matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

__all__ = ["minimize"]


def minimize(
    loss: Callable[[list[float]], float],
    start: list[float],
    *,
    steps: int,
    bound: float,
    spread: float,
    seed: int,
) -> tuple[list[float], float]:
    """Return the best of some points, and its loss.

    CMA-ES with the usual settings (Hansen 2016, arXiv:1604.00772): points are drawn around a mean, which moves to the
    better half of them, and the directions in which it moved are drawn farther. Few numbers and few evaluations are
    what it is good at, and it needs nothing but an order of the points.

    Args:
        loss: Asked at one point after another; may be infinite.
        start: The first point.
        steps: How often the loss is asked.
        bound: No coordinate is farther from 0.
        spread: Of the first points around the start.
        seed: Of what is drawn.
    """
    n = len(start)
    generator = torch.Generator().manual_seed(seed)
    count = 4 + math.floor(3 * math.log(n))  # points of a generation
    half = count // 2
    share = torch.log(torch.tensor(half + 0.5, dtype=torch.float64)) - torch.arange(1.0, half + 1).double().log()
    share /= share.sum()
    mass = float(1 / share.square().sum())  # how many equal points the weighted ones are worth
    # How fast the two paths forget, and how much one generation changes the covariance and the spread.
    keep_c = (4 + mass / n) / (n + 4 + 2 * mass / n)
    keep_s = (mass + 2) / (n + mass + 5)
    rank_one = 2 / ((n + 1.3) ** 2 + mass)
    rank_mu = min(1 - rank_one, 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
    damp = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (n + 1)) - 1) + keep_s
    length = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))  # of a vector of n normal numbers, on average

    mean = torch.tensor(start, dtype=torch.float64)
    covariance = torch.eye(n, dtype=torch.float64)
    path_c, path_s = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    best, least = list(start), loss(list(start))
    asked, generation = 1, 0
    while asked < steps:
        generation += 1
        values, vectors = torch.linalg.eigh(covariance)
        sizes = values.clamp_min(1e-20).sqrt()
        found: list[tuple[float, torch.Tensor]] = []
        for _ in range(min(count, steps - asked)):
            drawn = vectors @ (sizes * torch.randn(n, generator=generator, dtype=torch.float64))
            point = (mean + spread * drawn).clamp(-bound, bound)
            value = loss(point.tolist())
            asked += 1
            found.append((value, point))
            if value < least:
                best, least = point.tolist(), value
        if len(found) < count:  # the last generation has no next one
            break
        found.sort(key=lambda one: one[0])
        moves = torch.stack([(point - mean) / spread for _, point in found[:half]])
        move = share @ moves
        mean = mean + spread * move
        whitened = vectors @ ((vectors.T @ move) / sizes)
        path_s = (1 - keep_s) * path_s + math.sqrt(keep_s * (2 - keep_s) * mass) * whitened
        far = float(path_s.norm())
        straight = far / math.sqrt(1 - (1 - keep_s) ** (2 * generation)) < (1.4 + 2 / (n + 1)) * length
        path_c = (1 - keep_c) * path_c + straight * math.sqrt(keep_c * (2 - keep_c) * mass) * move
        lost = 0 if straight else rank_one * keep_c * (2 - keep_c)
        covariance = (
            (1 - rank_one - rank_mu + lost) * covariance
            + rank_one * torch.outer(path_c, path_c)
            + rank_mu * (moves.T * share) @ moves
        )
        spread = min(spread * math.exp((keep_s / damp) * (far / length - 1)), bound)
    return best, least
