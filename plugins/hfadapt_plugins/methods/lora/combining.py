"""One LoRA made of several, of any ranks, scales and places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfadapt.architecture import linear_sizes
from hfadapt.errors import CompositionError
from hfadapt.method import Combination, Combined
from hfadapt.runtime import deltas_of

from .config import LoRA
from .delta import LoRADelta

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["combine_loras"]


@dataclass(frozen=True)
class Update:
    """What one adapter adds to a linear's weight: ``weight * scale * B A``, in float64.

    Args:
        a: ``[R, Din]``.
        b: ``[O, R]``, zero where a slice of a fused linear is left out.
        scale: The LoRA's own.
        weight: The caller's.
    """

    a: Tensor
    b: Tensor
    scale: float
    weight: float

    @property
    def factor(self) -> float:
        return self.weight * self.scale

    def delta(self) -> Tensor:
        """The update without the caller's weight, ``[O, Din]``."""
        return self.scale * self.b @ self.a


_AVERAGE = "hfadapt.Average of the adapters, which averages what they compute"
Pair = tuple[Tensor, Tensor]
# By linear, the updates of each slice of it (most have one), in the adapters' order.
Places = dict[str, dict[Any, list[Update]]]


def combine_loras(model: PreTrainedModel, weights: Mapping[str, float], how: Combination) -> Combined:
    """See ``hfadapt.combine``.

    Raises:
        CompositionError: an adapter has a gate, or is in layers that are one module; the method is not defined for
            their ranks; or the rank that is asked for is above any that the result can have.
    """
    places = _places(model, weights)
    largest = max(update.a.shape[0] for parts in places.values() for each in parts.values() for update in each)
    if how.r is not None:
        _check_rank(places, how)
    made: dict[str, Pair] = {}
    errors: dict[str, float] = {}
    for leaf, parts in places.items():
        joined = [update for each in parts.values() for update in each]
        if how.method == "cat":
            made[leaf] = _cat(joined)
        elif how.method == "svd":
            made[leaf] = _truncate(*_cat(joined), how.r or largest)
        elif how.r is not None:
            made[leaf] = _factors(_apply(how, [u.delta() for u in joined], [u.weight for u in joined], leaf), how.r)
        else:
            pairs = [_by_factors(how, each, f"{leaf}:{part}") for part, each in parts.items()]
            made[leaf] = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)
        errors[leaf] = _lost(joined, made[leaf])
    ranks: dict[int, list[str]] = {}
    for leaf, (a, _) in made.items():
        ranks.setdefault(a.shape[0], []).append(leaf)
    configs = tuple(LoRA(r, float(r), tuple(leaves)) for r, leaves in ranks.items())
    return Combined(configs, partial(_weights, made=made), errors)


def _places(model: PreTrainedModel, weights: Mapping[str, float]) -> Places:
    found: Places = {}
    for name, weight in weights.items():
        for _, delta in deltas_of(model, name):
            config, site = delta.config(name), delta.site
            assert isinstance(delta, LoRADelta)
            if config.gate != "none" or config.dora or config.bias:
                why = "a gate" if config.gate != "none" else "DoRA's lengths" if config.dora else "a bias"
                raise CompositionError(
                    f"a LoRA with {why} is more than an update of weights",
                    where=site.leaf,
                    got=f"{name!r}: {config}",
                    allowed="LoRAs with gate='none', dora=False and bias=False",
                    try_=_AVERAGE,
                )
            if site.parameter:
                where = f"{site.leaf}.{site.parameter}"
                what = "LoRAs of a parameter, one update for each of its matrices, cannot be combined into one"
                raise CompositionError(
                    what,
                    where=where,
                    got=name,
                    allowed="LoRAs of linears, tables and convolutions",
                    try_="hfadapt.Average of the adapters, or hfadapt.merge",
                )
            if site.shared_layer:
                raise CompositionError(
                    "layers that are one module cannot have a LoRA each",
                    where=site.leaf,
                    got=name,
                    allowed="LoRAs of modules that stand in one layer",
                    try_=_AVERAGE,
                )
            outputs = linear_sizes(model.get_submodule(site.leaf))[1]
            a, b = (one.detach() for one in delta.matrices(name, double=True))
            a = a.flatten(1)  # a window is a vector
            if site.part is not None:
                blocks, start, stop = site.part
                whole = b.new_zeros(outputs, b.shape[1])
                whole.unflatten(0, (blocks, -1))[:, start:stop] = b.unflatten(0, (blocks, -1))
                b = whole
            update = Update(a, b, config.scale, weight)
            found.setdefault(site.leaf, {}).setdefault(site.part, []).append(update)
    return found


def _check_rank(places: Places, how: Combination) -> None:
    """Raise where a rank is above that of every linear: the rest would be zeros, in whatever memory they take."""
    limits = []
    for parts in places.values():
        joined = [update for each in parts.values() for update in each]
        limits.append(min(joined[0].a.shape[1], joined[0].b.shape[0]))
    if how.r is not None and how.r > max(limits):
        raise CompositionError(
            "no update of these linears has so high a rank",
            where="combine(r=...)",
            got=f"r={how.r}",
            allowed=f"1 to {max(limits)}",
            try_="method='cat' without r, whose ranks add up and which loses nothing",
        )


def _cat(updates: Sequence[Update]) -> Pair:
    return torch.cat([u.a for u in updates]), torch.cat([u.factor * u.b for u in updates], 1)


def _truncate(a: Tensor, b: Tensor, r: int) -> Pair:
    """The closest ``B A`` of rank r, found without forming ``B A``; of fewer ranks than r it is padded with zeros."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    return _cut(q_b @ u, s, v @ q_a.T, r)


def _factors(delta: Tensor, r: int) -> Pair:
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return _cut(u, s, v, r)


def _cut(u: Tensor, s: Tensor, v: Tensor, r: int) -> Pair:
    kept = min(r, s.shape[0])
    root = s[:kept].sqrt()
    a, b = root.unsqueeze(1) * v[:kept], u[:, :kept] * root
    pad = r - kept
    return torch.nn.functional.pad(a, (0, 0, 0, pad)), torch.nn.functional.pad(b, (0, pad))


def _by_factors(how: Combination, updates: Sequence[Update], where: str) -> Pair:
    """Combine A and B apart; the sign of a negative weight goes to one of the two."""
    ranks = {u.a.shape[0] for u in updates}
    if len(ranks) > 1:
        raise CompositionError(
            f"{how.method!r} of matrices of different ranks is not defined",
            where=where,
            got=f"ranks {sorted(ranks)}",
            allowed="one rank at each place",
            try_="method='cat' (exact), or r=... to combine the updates themselves",
        )
    roots = [abs(u.factor) ** 0.5 for u in updates]
    signed = [root if u.factor >= 0 else -root for root, u in zip(roots, updates, strict=True)]
    return _apply(how, [u.a for u in updates], signed, f"{where}:A"), _apply(
        how, [u.b for u in updates], roots, f"{where}:B"
    )


def _apply(how: Combination, tensors: Sequence[Tensor], weights: Sequence[float], where: str) -> Tensor:
    density = 1.0 if how.density is None else how.density
    prune: Callable[[Tensor, int], Tensor]
    if how.method.startswith("dare"):
        prune = partial(_drop, density=density, seed=how.seed, where=where)
    else:
        prune = partial(_largest, density=density)
    kept = torch.stack([prune(tensor, number) for number, tensor in enumerate(tensors)])
    weighted = kept * torch.tensor(weights, dtype=kept.dtype).view(-1, *(1,) * (kept.dim() - 1))
    if not how.method.endswith("ties"):
        return weighted.sum(0)
    # The sign that has more of the sum is elected, and the numbers of that sign are averaged (TIES, section 3).
    elected = torch.where(kept.sum(0) >= 0, 1, -1)
    agrees = kept.sign() == elected
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def _largest(tensor: Tensor, number: int, density: float) -> Tensor:
    if density >= 1:
        return tensor
    count = int(density * tensor.numel())
    chosen = tensor.abs().flatten().topk(count).indices
    return torch.zeros_like(tensor).flatten().scatter(0, chosen, tensor.flatten()[chosen]).view_as(tensor)


def _drop(tensor: Tensor, number: int, density: float, seed: int, where: str) -> Tensor:
    if density >= 1:
        return tensor
    # A stream of its own for each matrix of each adapter, the same on every machine.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number * 7919 + sum(where.encode()))
    mask = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) < density
    return tensor * mask.to(tensor.device) / density


def _lost(updates: Sequence[Update], made: Pair) -> float:
    wanted = sum(u.weight * u.delta() for u in updates)
    assert isinstance(wanted, Tensor)
    norm = float(wanted.norm())
    difference = float((wanted - made[1] @ made[0]).norm())
    return difference / norm if norm else difference


def _weights(model: PreTrainedModel, name: str, made: Mapping[str, Pair]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, delta in deltas_of(model, name):
        for key, tensor in zip(("lora_a", "lora_b"), made[delta.site.leaf], strict=True):
            own = getattr(delta.own(name), key)
            wide = torch.promote_types(own.dtype, torch.float32)
            found[f"{path}.adapters.{name}.{key}"] = tensor.to(wide).view(own.shape)
    return found
