"""What one method does on one model of any type: attached, mixed, trained, saved, loaded and taken off again.

The checks of :mod:`hfadapt.testing.conformance` on models that are not known beforehand: no tolerance can be that of
float64, inputs are made up, and a refusal is an answer if it says what to do.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hfadapt

from ..architecture.inputs import first_that_runs
from ..errors import HFAdaptError, RoutingError
from ..runtime import deltas_of
from .conformance import randomize

__all__ = ["METHODS", "Verdict", "stock_inputs", "try_method"]

ROWS = 3
_TOLERANCE = 2e-4
# What the order of sums may change in float32; adapters that differ less cannot be told apart.
_ROUNDING = 1e-5
# Far below the tolerance, so that an entry of other rows does not pass by chance.
_STAYS = 1e-6

METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: hfadapt.LoRA(target_modules=("all-linear",)),
    "lora by role": lambda: hfadapt.LoRA(),
    "bottleneck": lambda: "bottleneck",
    "parallel": lambda: "parallel",
    "low_rank": lambda: "low_rank",
    "lhuc": lambda: "lhuc",
    "pal": lambda: {"method": "pal", "size": 8, "num_heads": 2},
    "prefix": lambda: {"method": "prefix", "num_virtual_tokens": 3, "mlp_size": 8},
}


@dataclass(frozen=True)
class Verdict:
    """How a method fared on a model.

    Attributes:
        verdict: "ok"; "refused", with the error of ours as the reason; "one adapter a batch" where all holds but that
            rows of several cannot be told apart; "wrong" where a check failed; "crash" for an error that is not ours.
        reason: Why.
        places: How many deltas one adapter has.
    """

    verdict: str
    reason: str = ""
    places: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {key: value for key, value in asdict(self).items() if value not in ("", 0)}


def stock_inputs(model: nn.Module, rows: int = ROWS) -> dict[str, Any]:
    """Return inputs with which the stock model runs.

    Raises:
        ArchitectureError: none could be made.
    """
    with torch.no_grad():
        return first_that_runs(model, rows, lambda given: model(**given))[0]


def try_method(model: nn.Module, inputs: Mapping[str, Any], method: Any) -> Verdict:
    """Try everything that a method promises on a copy of a model.

    Args:
        model: A stock model in evaluation mode; left as it was.
        inputs: With which it runs, three rows.
        method: As of ``attach``.
    """
    adapted: Any = copy.deepcopy(model)
    try:
        handle = hfadapt.attach(adapted, method, names=("one", "two"), seed=0)
    except HFAdaptError as error:
        return Verdict("refused", str(error))
    except Exception as error:  # what is not ours is the finding
        return Verdict("crash", _told(error))
    places = sum(1 for _ in deltas_of(adapted, "one"))
    try:
        mixes = _check(model, adapted, inputs, handle)
    except AssertionError as error:
        return Verdict("wrong", str(error), places)
    except HFAdaptError as error:
        return Verdict("wrong", f"{type(error).__name__} after attach: {error}", places)
    except Exception as error:  # as above
        return Verdict("crash", _told(error), places)
    return Verdict("ok", "", places) if mixes is None else Verdict("one adapter a batch", mixes, places)


def _check(model: Any, adapted: Any, inputs: Mapping[str, Any], handle: Any) -> str | None:
    """Check a model with the adapters "one" and "two"; return why its batches cannot be mixed, or None."""
    names = [name for name, _ in model.named_parameters()]
    randomize(adapted)
    with torch.no_grad():
        # torch folds the product of an input that is not contiguous by what the weight's requires_grad says, under
        # no_grad too (findings/torch-linear-requires-grad-bits.sh): the bits of a frozen base are a frozen model's.
        stock = _outputs(copy.deepcopy(model).requires_grad_(False), inputs)
        alone = {name: _outputs(adapted, inputs, task_ids=name) for name in ("one", "two")}
        assert _gap(alone["one"], stock) > 0, "an adapter changes nothing"
        assert _gap(alone["one"], alone["two"]) > 0, "two adapters give the same output"
        assert _gap(_outputs(adapted, inputs, task_ids="__base__"), stock) == 0, "rows without an adapter changed"
    reason = _check_rows(model, adapted, inputs, alone)
    adapted.zero_grad()
    try:
        _backward(adapted, inputs, task_ids="one")
    except Exception:  # of any kind, and raised again where the stock model has no part in it
        if _trains(model, inputs):
            raise
        _backward(adapted.train(), inputs, task_ids="one")
        adapted.eval()
    mine = hfadapt.parameters_of(adapted, "one")
    assert any(p.grad is not None for p in mine.values()), "no gradient reaches an adapter"
    others = [n for n, p in adapted.named_parameters() if p.grad is not None and n not in mine]
    assert not others, f"gradients of others, such as {others[:1]}"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        hfadapt.save(adapted, folder)
        again = hfadapt.load(folder, copy.deepcopy(model))
        assert _gap(_outputs(again, inputs, task_ids="two"), alone["two"]) == 0, "outputs differ after load"
    handle.detach()
    assert [name for name, _ in adapted.named_parameters()] == names, "detach leaves names behind"
    with torch.no_grad():
        assert _gap(_outputs(adapted, inputs), _outputs(model, inputs)) == 0, "detach does not restore the outputs"
    return reason


def _trains(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether the stock model can be trained in evaluation mode; a few write in place there, or refuse."""
    try:
        _backward(copy.deepcopy(model).requires_grad_(True), inputs)
    except Exception:  # of the model's own
        return False
    return True


def _backward(model: Any, inputs: Mapping[str, Any], **more: Any) -> None:
    outputs = _outputs(model, inputs, **more).values()
    loss = sum(t.double().square().mean() for t in outputs if t.requires_grad)
    assert isinstance(loss, Tensor), "no output depends on an adapter"
    loss.backward()


def _check_rows(
    model: Any, adapted: Any, inputs: Mapping[str, Any], alone: Mapping[str, dict[Any, Tensor]]
) -> str | None:
    """Hold a mixed batch against batches of one adapter; return why there can be none, or None.

    In the first output in which the two adapters differ, row by row; others may be one for all rows, or rows compared
    with one another.
    """
    order = ["two", "one", "two"]
    try:
        with torch.no_grad():
            mixed = _outputs(adapted, inputs, task_ids=order)
    except RoutingError as error:
        return str(error)
    key = next((key for key in mixed if _can_compare(mixed[key], [one[key] for one in alone.values()])), None)
    assert key is not None, f"no output shows which adapter a row of a mixed batch had: {', '.join(mixed) or 'none'}"
    value = mixed[key]
    for row, name in enumerate(order):
        others = alone["one" if name == "two" else "two"][key]
        mine, right, wrong = (one.reshape(ROWS, -1)[row] for one in (value, alone[name][key], others))
        gap = _difference(mine, right)
        if gap > _allowed(right, wrong) and (own := _own_entries(model, inputs, key, row)) is not None:
            assert own.any(), f"row {row} of {key} is made of other rows by the model, and mixing them was no error"
            mine, right, wrong = mine[own], right[own], wrong[own]
            assert _difference(right, wrong) > 0, f"what row {row} of {key} is by itself shows no adapter"
            gap = _difference(mine, right)
        assert gap <= _allowed(right, wrong), f"row {row} of a mixed batch differs by {gap:.2g} in {key}"
    return None


def _can_compare(mixed: Tensor, alone: list[Tensor]) -> bool:
    """Whether an output has a row for each of the batch, in which the adapters differ."""
    if mixed.dim() == 0 or mixed.shape[0] % ROWS or any(mixed.shape != one.shape for one in alone):
        return False  # as long as its longest row, and what pads the others may reach them (FastSpeech 2)
    every_with_every = mixed.shape == (ROWS, ROWS)
    return not every_with_every and _difference(alone[0], alone[1]) > 0  # else any adapter would pass


def _allowed(right: Tensor, wrong: Tensor) -> float:
    """How far a row may be from the one of its adapter: never as far as that of another adapter is."""
    return min(_TOLERANCE, max(_ROUNDING, _difference(wrong, right) / 2))


def _own_entries(model: Any, inputs: Mapping[str, Any], key: str, row: int) -> Tensor | None:
    """Which entries of a row of the stock model's output stay where the other rows are as this one; None if unknown.

    What differs is made of other rows by the model itself: a caption beside every image, a choice for the whole batch.
    """
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    if any(value.dim() == 0 or value.shape[0] != ROWS for value in tensors):
        return None
    alike = {k: v[[row] * ROWS] if isinstance(v, Tensor) else v for k, v in inputs.items()}
    with torch.no_grad():
        stock, other = (_outputs(model, given)[key] for given in (inputs, alike))
    if stock.shape != other.shape or stock.shape[0] != ROWS:
        return None
    scale = float(stock[row].abs().nan_to_num(posinf=0).max())
    return ((stock[row] - other[row]).abs() <= _STAYS * max(1.0, scale)).reshape(-1)


def _outputs(model: Any, inputs: Mapping[str, Any], **more: Any) -> dict[Any, Tensor]:
    """The floating-point tensors that a model returns; randomness in it is the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(_tensors(model(**inputs, **more)))


def _tensors(value: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield key, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _tensors(one, f"{key}.{name}")
    elif isinstance(value, (tuple, list)):
        for number, one in enumerate(value):
            yield from _tensors(one, f"{key}.{number}")


def _gap(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> float:
    assert one.keys() == other.keys(), f"other outputs: {sorted(one.keys() ^ other.keys())}"
    return max((_difference(value, other[key]) for key, value in one.items()), default=0.0)


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    same = (one == other) | (one.isnan() & other.isnan())
    gap = (one.double() - other.double()).masked_fill(same, 0).abs().max()
    return float(gap / max(1.0, float(other.abs().nan_to_num(posinf=0).max())))


def _told(error: Exception) -> str:
    """An error with the place in the code that it came from."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({last.filename.rpartition('/')[2]}:{last.lineno})"
