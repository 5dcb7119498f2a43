"""Making one adapter of several: what is asked of a method, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .config import MethodConfig

__all__ = ["Combination", "Combined", "weighted_sum"]


@dataclass(frozen=True)
class Combination:
    """How adapters are made one.

    Args:
        method: ``"linear"``, ``"cat"``, ``"svd"``, ``"ties"``, ``"dare_linear"``, ``"dare_ties"`` or
            ``"magnitude_prune"``.
        r: Rank of the result, where the method has one to choose.
        density: Share of numbers that the pruning methods keep.
        seed: Of the numbers that DARE drops.
    """

    method: str = "linear"
    r: int | None = None
    density: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Combined:
    """One adapter made of others.

    Args:
        configs: What is to be attached for it.
        weights: Called with a model to which that is attached and the adapter's name; returns the tensors of its
            parameters by the model's names for them.
        errors: By module, what the result lacks of the weighted sum of the adapters' updates, relative to it in the
            Frobenius norm; empty where the method has no such sum.
    """

    configs: tuple[MethodConfig, ...]
    weights: Callable[[PreTrainedModel, str], Mapping[str, Tensor]]
    errors: Mapping[str, float] = field(default_factory=dict)


def weighted_sum(weights: Mapping[str, float], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weighted sum of tensors of one shape: added in float64, in the dtype of the first.

    Args:
        weights: By name, at least one.
        tensors: By the same names.
    """
    first, *others = weights
    total = weights[first] * tensors[first].detach().double()
    for name in others:
        total += weights[name] * tensors[name].detach().double()
    return total.to(tensors[first].dtype)
