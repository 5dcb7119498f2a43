"""Weights for a combination of adapters, found from a few examples without gradients: ``fit_weights``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..architecture.modes import evaluating
from ..errors import AttachError, ConfigError, DataError
from ..errors.limits import require_number
from ..errors.names import names_of
from ..runtime.attachment import adapted_model, attachment, parameters_of, uncompiled
from .activate import active
from .combine import check_combination, check_parts, combined
from .detach import detach
from .evolution import minimize
from .folder_format import FolderContent
from .foreign import put_on
from .own_copies import own_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..method import Combination

__all__ = ["fit_weights"]

_WHERE = "hfadapt.fit_weights"
Loss = Callable[[Any, Mapping[str, Any]], Tensor]


def fit_weights(
    model: PreTrainedModel,
    adapters: str | Iterable[str],
    data: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    steps: int = 40,
    *,
    method: str = "cat",
    r: int | None = None,
    density: float | None = None,
    heads: bool = True,
    penalty: float = 0.05,
    bound: float = 1.5,
    seed: int = 0,
    loss: Loss | None = None,
) -> dict[str, float]:
    """Find the weights with which adapters do a new task best, from a few examples (LoraHub, Huang et al. 2023).

    As in the paper (arXiv:2307.13269, eq. 2), the mean loss of the examples plus ``penalty`` times the sum of the
    weights' sizes is minimised without gradients: no backward pass, and no more memory than a forward. What is
    measured is the very adapter that ``hfadapt.combine(model, weights, method=..., name=...)`` makes. The search is
    CMA-ES from equal weights that sum to 1; the paper's starts at 0 and is nevergrad's, whose default for so few
    numbers is CMA-ES too. The paper combines as ``method="linear"`` does, which needs LoRAs of one rank.

    Args:
        model: With the adapters.
        adapters: Their names.
        data: Batches as the model takes them, with labels, or one batch. All of them are held at once.
        steps: How many weights are tried; each costs a forward over the data.
        method: As of ``hfadapt.combine``.
        r: As of ``hfadapt.combine``.
        density: As of ``hfadapt.combine``.
        heads: As of ``hfadapt.combine``.
        penalty: On the sum of the weights' sizes.
        bound: No weight is larger, nor smaller than its negative.
        seed: Of the search, and of what DARE drops.
        loss: Called with the model and a batch; by default the loss that the model returns. Batches count by the rows
            of their first tensor.

    Returns:
        The best weights that were tried, by adapter: never worse on these examples than equal ones. The model is left
        as it was.

    Raises:
        CompositionError: the adapters cannot be made one in this way.
        AttachError: an adapter is not there, or the model is a ``MultiTaskModel``.
        DataError: there are no batches, or no loss of them.
        ConfigError: an option is out of range, or the extra ``fit`` (cmaes) is not installed.
        CheckpointError: an adapter holds NaN or Inf.
    """
    model = uncompiled(model)
    state = attachment(model)
    names = names_of(adapters)
    if adapted_model(model) is not model:
        raise AttachError(
            "a multi-task model has no head for a new task",
            where=_WHERE,
            got=type(model).__name__,
            allowed="a stock model with adapters",
            try_="fit_weights(model.base, ..., loss=lambda base, batch: ...)",
        )
    for name in names:
        state.require(name)
    names = tuple(dict.fromkeys(names))
    require_number("steps", steps, where=_WHERE, whole=True, least=1, most=10**6)
    require_number("penalty", penalty, where=_WHERE, least=0)
    require_number("bound", bound, where=_WHERE, above=0)
    if loss is not None and not callable(loss):
        raise ConfigError(
            "loss is no function",
            where=_WHERE,
            got=repr(loss),
            allowed="a function of model and batch",
            try_="loss=lambda model, batch: model(**batch).loss",
        )
    equal = dict.fromkeys(names, min(1 / max(len(names), 1), float(bound)))
    _, how = check_combination(equal, method, r, density, seed, heads, where=_WHERE)
    check_parts(model, names)
    batches = _batches(data, model)
    temporary = next(f"fitted{n}" for n in range(len(state.routable) + 1) if f"fitted{n}" not in state.routable)
    described, _ = combined(model, equal, how, heads, temporary)
    put_on(model, FolderContent((described,)), _WHERE)
    try:

        def at(point: list[float]) -> float:
            weights = dict(zip(names, point, strict=True))
            if not _fill(model, weights, how, heads, temporary):
                return math.inf
            found = _mean_loss(model, batches, loss, temporary) + penalty * sum(map(abs, point))
            return math.inf if math.isnan(found) else found

        start, limit = list(equal.values()), float(bound)
        with evaluating(model):
            best, least = minimize(at, start, steps=int(steps), bound=limit, spread=limit / 3, seed=seed)
    finally:
        detach(model, temporary)
    if not math.isfinite(least):
        raise DataError(
            "no weights gave the examples a finite loss",
            where=_WHERE,
            got=least,
            allowed="a number",
            try_="look at the data, or at the adapters one by one",
        )
    return dict(zip(names, best, strict=True))


def _batches(data: Any, model: PreTrainedModel) -> Sequence[dict[str, Any]]:
    """Return the batches on the model's device.

    Raises:
        DataError: there are none, or they are no batches.
    """
    given = [data] if isinstance(data, Mapping) else data
    allowed = "batches as the model takes them: {'input_ids': ..., 'labels': ...}, a list of them, or a DataLoader"
    try:
        listed = [] if isinstance(given, (str, bytes, Tensor)) else list(given)
    except TypeError:
        listed = []
    named = all(isinstance(one, Mapping) and all(isinstance(key, str) for key in one) for one in listed)
    if not listed or not named or not all(any(isinstance(v, Tensor) for v in one.values()) for one in listed):
        raise DataError("no batches to measure", where=_WHERE, got=repr(data)[:80], allowed=allowed, try_="[batch]")
    return [
        {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in one.items()}
        for one in listed
    ]


def _fill(model: PreTrainedModel, weights: Mapping[str, float], how: Combination, heads: bool, temporary: str) -> bool:
    """Let the temporary adapter be what ``combine`` makes with these weights; False where that is not defined.

    Heads are averages, which weights that sum to nothing do not give.
    """
    has_heads = heads and any(True for _ in own_tensors(model, temporary))
    if has_heads and abs(sum(weights.values())) < 1e-6:
        return False
    described, _ = combined(model, weights, how, heads, temporary)
    made = described.weights(model, temporary)
    with torch.no_grad():
        for key, parameter in parameters_of(model, temporary, own_modules=False).items():
            parameter.copy_(made[key])
        for path, key, tensor in own_tensors(model, temporary) if heads else ():
            tensor.copy_(described.whole[f"{path}.{key}"])
    return True


def _mean_loss(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Any]], loss: Loss | None, temporary: str
) -> float:
    total, rows = 0.0, 0
    with torch.no_grad(), active(model, temporary):
        for batch in batches:
            found = loss(model, batch) if loss is not None else getattr(model(**batch), "loss", None)
            if not isinstance(found, Tensor) or found.numel() != 1:
                raise DataError(
                    "the model gives no loss of a batch",
                    where=_WHERE,
                    got=f"{type(model).__name__} called with {', '.join(batch)}",
                    allowed="one number",
                    try_="batches with labels for a model with a head; or loss=lambda model, batch: ...",
                )
            count = next(v.shape[0] if v.dim() else 1 for v in batch.values() if isinstance(v, Tensor))
            total, rows = total + count * float(found), rows + count
    return total / max(rows, 1)
