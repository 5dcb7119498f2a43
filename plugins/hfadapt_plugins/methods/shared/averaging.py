"""The average of adapters' weights (AdapterSoup, Chronopoulou et al. 2023, arXiv:2302.07027)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from hfadapt import attachment, parameters_of
from hfadapt.errors import CompositionError
from hfadapt.method import Combination, Combined, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["average"]


def average(model: PreTrainedModel, weights: Mapping[str, float], how: Combination) -> Combined:
    """Return an adapter whose parameters are the weighted mean of those of others of the same config.

    Raises:
        CompositionError: it is no mean that is asked for, or the configs differ.
    """
    if how.method != "linear" or how.r is not None:
        got = f"method={how.method!r}" + (f", r={how.r}" if how.r else "")
        raise CompositionError(
            "adapters with a non-linearity can only be averaged",
            where=f"combine of {', '.join(weights)}",
            got=got,
            allowed="method='linear'",
            try_="method='linear' without r, or hfadapt.Average of the adapters",
        )
    total = sum(weights.values())
    if abs(total - 1) > 1e-6:
        even = ", ".join(f"{name!r}: {1 / len(weights):.6g}" for name in weights)
        scaled = ", ".join(f"{name!r}: {weight / total:.6g}" for name, weight in weights.items()) if total else even
        raise CompositionError(
            "an average has weights that sum to 1",
            where=f"combine of {', '.join(weights)}",
            got=f"{dict(weights)}, which sum to {total:g}",
            allowed="a sum of 1",
            try_=f"{{{scaled}}}",
        )
    configs = {name: attachment(model).require(name).configs for name in weights}
    first = next(iter(configs.values()))
    other = next((name for name, found in configs.items() if found != first), None)
    if other is not None:
        raise CompositionError(
            "adapters are averaged where their configs are equal",
            where=f"combine of {', '.join(weights)}",
            got=f"{other!r}: {' + '.join(map(str, configs[other]))}",
            allowed=" + ".join(map(str, first)),
            try_="hfadapt.Average of the adapters, which averages what they compute",
        )
    found = {name: dict(parameters_of(model, name, own_modules=False)) for name in weights}
    return Combined(first, partial(_mean, weights=weights, found=found))


def _mean(
    model: PreTrainedModel, name: str, weights: Mapping[str, float], found: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    return {
        key: weighted_sum(weights, {one: found[one][_of(key, name, one)] for one in weights})
        for key in parameters_of(model, name, own_modules=False)
    }


def _of(key: str, name: str, other: str) -> str:
    """Return the name that a parameter of ``name`` has for another adapter."""
    if key.startswith(f"hfadapt_shared.{name}."):
        return f"hfadapt_shared.{other}.{key.removeprefix(f'hfadapt_shared.{name}.')}"
    before, _, end = key.rpartition(f".adapters.{name}.")
    return f"{before}.adapters.{other}.{end}"
