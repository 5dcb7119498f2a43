"""One adapter made of several, or of one with fewer numbers: ``combine`` and ``compress``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from .. import plugins
from ..errors import CompositionError, did_you_mean
from ..errors.arguments import require_switches
from ..errors.limits import require_number
from ..method import Combination, weighted_sum
from ..runtime.attachment import attachment, parameters_of, uncompiled
from ..runtime.watch import require_intact
from .folder_format import Described, FolderContent
from .foreign import put_on
from .own_copies import own_tensors
from .saved_tensors import require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CombinedAdapter", "check_combination", "check_parts", "combine", "combined", "compress"]

METHODS = ("linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune")
_PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


@dataclass(frozen=True)
class CombinedAdapter:
    """What ``combine`` and ``compress`` made.

    Args:
        name: Of the new adapter.
        errors: By module, the part of the weighted sum of the updates that the new one lacks, relative to that sum in
            the Frobenius norm; empty where the method has no such sum (bottleneck adapters).
    """

    name: str
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The largest of the errors; 0 where there are none."""
        return max(self.errors.values(), default=0.0)


def combine(
    model: PreTrainedModel,
    weights: Mapping[str, float],
    *,
    method: str = "linear",
    name: str,
    r: int | None = None,
    density: float | None = None,
    seed: int = 0,
    heads: bool = True,
) -> CombinedAdapter:
    """Make one adapter of several, beside them.

    LoRAs may differ in rank, scale and places; a place that one lacks counts as no update there:

    - ``"cat"`` joins their matrices: exactly the weighted sum of their updates, of the sum of their ranks.
    - ``"svd"`` is the closest update of rank ``r`` to that sum (by default the largest of their ranks).
    - ``"linear"``, ``"ties"`` (Yadav et al. 2023), ``"dare_linear"``, ``"dare_ties"`` (Yu et al. 2024) and
      ``"magnitude_prune"`` act on the matrices A and B apart, as in peft, which needs equal ranks. With ``r`` they act
      on the updates themselves, of any ranks, and the result is cut to rank ``r``.

    Bottleneck and parallel adapters are averaged by ``"linear"`` with weights that sum to 1 (AdapterSoup, Chronopoulou
    et al. 2023). Heads and other own modules are averaged, with weights divided by their sum.

    Args:
        model: With the adapters.
        weights: By adapter.
        method: See above.
        name: Of the new adapter.
        r: Rank of the result.
        density: Share of the numbers that ``"ties"``, ``"dare_..."`` and ``"magnitude_prune"`` keep.
        seed: Of the numbers that DARE drops.
        heads: Average own modules too; False leaves the new adapter the base's.

    Returns:
        The name, and what of the sum of the updates was lost.

    Raises:
        CompositionError: what is asked for is not defined for these adapters.
        AttachError: an adapter is not there.
        CheckpointError: the name is taken, or an adapter holds NaN or Inf.
    """
    model = uncompiled(model)
    given, how = check_combination(weights, method, r, density, seed, heads, where="hfadapt.combine")
    check_parts(model, given)
    described, errors = combined(model, given, how, heads, name)
    put_on(model, FolderContent((described,)), f"combine(name={name!r})")
    return CombinedAdapter(name, errors)


def check_parts(model: PreTrainedModel, adapters: Iterable[str]) -> None:
    """Raise unless adapters can be made one: all there, of numbers, and of one method.

    Raises:
        CompositionError: they are of different methods, or of several at once.
        AttachError: an adapter is not there.
        CheckpointError: one holds NaN or Inf.
    """
    given = tuple(adapters)
    state = attachment(model)
    for one in given:
        state.require(one)
        require_finite(parameters_of(model, one), f"adapter {one!r}")
    require_intact(state, list(given))
    kinds = {one: tuple({config.method: 0 for config in state.adapters[one].configs}) for one in given}
    if len(set(kinds.values())) > 1 or any(len(found) != 1 for found in kinds.values()):
        raise CompositionError(
            "adapters of different methods, or of several at once, cannot be made one",
            where=type(model).__name__,
            got=", ".join(f"{one}: {' + '.join(found) or 'own modules alone'}" for one, found in kinds.items()),
            allowed="adapters of one config each, all by the same method",
            try_="hfadapt.Average of the adapters, which runs them beside one another",
        )


def combined(
    model: PreTrainedModel, weights: Mapping[str, float], how: Combination, heads: bool, name: str
) -> tuple[Described, Mapping[str, float]]:
    """Work out one adapter of several that `check_parts` let through, and what it lacks of their weighted sum.

    Raises:
        CompositionError: what is asked for is not defined for these adapters.
    """
    method = plugins.methods()[attachment(model).require(next(iter(weights))).configs[0].method]
    made = method.combine(model, weights, how)
    return Described(name, made.configs, made.weights, _heads(model, weights) if heads else {}), made.errors


def compress(model: PreTrainedModel, adapter: str, r: int, *, name: str | None = None) -> CombinedAdapter:
    """Make a LoRA of rank ``r`` that is the closest to one of a higher rank, beside it, by a truncated SVD.

    Args:
        model: With the adapter.
        adapter: A LoRA.
        r: Rank of the new one.
        name: Of the new one; by default that of ``adapter`` with ``_r`` and the rank behind it.

    Returns:
        The name, and the error that the cut makes at each linear.

    Raises:
        CompositionError: the adapter is no LoRA, or the rank is none.
        AttachError: it is not there.
        CheckpointError: the name is taken, or an adapter holds NaN or Inf.
    """
    attachment(model).require(adapter)
    return combine(model, {adapter: 1.0}, method="svd", name=f"{adapter}_r{r}" if name is None else name, r=r)


def check_combination(
    weights: Mapping[str, float],
    method: str,
    r: int | None,
    density: float | None,
    seed: int,
    heads: bool,
    *,
    where: str,
) -> tuple[dict[str, float], Combination]:
    """Return the weights and the way of a combination.

    Args:
        weights: As of ``combine``, like the others.
        method: How.
        r: Rank.
        density: Share.
        seed: Of what is dropped.
        heads: Own modules too.
        where: Who was given them.

    Raises:
        CompositionError: one of them is none.
    """
    require_switches(where=where, error=CompositionError, heads=heads)
    require_number("seed", seed, where=where, whole=True, least=0, below=2**32, error=CompositionError)
    if method not in METHODS:
        raise CompositionError(
            "no such method",
            where=where,
            got=repr(method),
            allowed=", ".join(METHODS),
            try_=did_you_mean(str(method), METHODS) or "method='cat'",
        )
    if not isinstance(weights, Mapping) or not weights:
        raise CompositionError(
            "weights by adapter",
            where=where,
            got=repr(weights),
            allowed="{'a': 0.7, 'b': 0.3}",
            try_="{'a': 0.5, 'b': 0.5}",
        )
    if r is not None and (type(r) is not int or r < 1 or method == "cat"):
        allowed = "a whole number >= 1; 'cat' has the sum of the ranks"
        raise CompositionError(
            "bad rank", where=where, got=f"r={r!r}, method={method!r}", allowed=allowed, try_="leave r out"
        )
    if (density is not None) != (method in _PRUNING):
        allowed = f"a share with {', '.join(_PRUNING)}, and only with them"
        raise CompositionError(
            "bad density",
            where=where,
            got=f"density={density!r}, {method!r}",
            allowed=allowed,
            try_="density=0.5" if density is None else f"leave density out, or method={_PRUNING[0]!r}",
        )
    if density is not None and not 0 < require_number("density", density, where=where, error=CompositionError) <= 1:
        raise CompositionError(
            "bad density", where=where, got=density, allowed="more than 0, at most 1", try_="density=0.5"
        )
    given = {
        one: float(require_number("weight", value, where=f"{where}, {one!r}", error=CompositionError))
        for one, value in weights.items()
    }
    return given, Combination(method, r, density, seed)


def _heads(model: PreTrainedModel, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the average of what the adapters have of own modules.

    Raises:
        CompositionError: their modules or shapes differ, or the weights sum to nothing.
    """
    each = {one: {f"{path}.{key}": t for path, key, t in own_tensors(model, one)} for one in weights}
    shapes = {one: {key: tuple(t.shape) for key, t in found.items()} for one, found in each.items()}
    first = next(iter(shapes.values()))
    differing = [one for one, found in shapes.items() if found != first]
    total = sum(weights.values())
    if differing or (first and abs(total) < 1e-12):
        keys = {key for key in first if shapes[differing[0]].get(key) != first[key]} if differing else set()
        raise CompositionError(
            "heads and other own modules are averaged where their shapes agree, with weights that do not sum to 0",
            where=f"own modules of {', '.join(weights)}",
            got=f"{differing[0]!r} has others: {', '.join(sorted(keys)[:3]) or 'more'}"
            if differing
            else f"sum {total}",
            allowed=f"the {len(first)} tensors of {next(iter(shapes))!r} in each"
            if differing
            else "a sum that is not 0",
            try_="heads=False, which leaves the new adapter the base's",
        )
    shares = {one: weight / total for one, weight in weights.items()} if first else {}
    return {
        key: weighted_sum(shares, {one: found[key] for one, found in each.items()})
        if like.is_floating_point()
        else like.clone()
        for key, like in next(iter(each.values())).items()
    }
