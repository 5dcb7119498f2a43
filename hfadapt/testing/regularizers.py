"""What every regularizer must hold, for built-in and third-party ones alike.

A plugin's test file needs only this::

    import pytest
    from hfadapt.testing import regularizers

    @pytest.mark.parametrize("check", regularizers.CHECKS, ids=lambda c: c.__name__)
    def test_conformance(check):
        check(MyRegularizer())

The model is a tiny BERT in float64 with dropout, in training mode, as it is trained.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import hfadapt

from ..training.regularizers import (
    Answers,
    Deltas,
    MicroBatch,
    Noise,
    Pass,
    Perturbation,
    Regularizer,
    Step,
    Teacher,
    Update,
    word_embeddings,
)
from .tiny import tiny_inputs, tiny_model

__all__ = ["CHECKS", "make_step", "tiny_batch", "tiny_classifier"]

_SEED = 5
_MOVE = 1e-5


def tiny_classifier(method: Any = "lora", **changes: Any) -> nn.Module:
    """A tiny BERT with a head of two classes, adapted, in float64 and training mode, with dropout."""
    model: Any = tiny_model("bert", "sequence-classification", **{**_DROPOUT, **changes}).double()
    if method is not None:
        hfadapt.attach(model, method, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(parameter.dtype), alpha=0.1)
    return model.double().train()


_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def tiny_batch(rows: int = 3, seed: int = 1) -> dict[str, Tensor]:
    """Inputs of ``tiny_classifier``, padded, with labels."""
    inputs = tiny_inputs("bert", "sequence-classification", batch=rows, padding="right", seed=seed)
    return {**inputs, "labels": torch.arange(rows) % 2}


def _compute(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
    output = model(**inputs)
    return output.loss, output


def make_step(
    model: nn.Module, inputs: Mapping[str, Any], regularizer: Regularizer, kind: type[Step] = Step, **options: Any
) -> Step:
    """Return the step of a batch, as Trainer's would be: the same dropout masks and the same draws every time.

    Args:
        model: What trains.
        inputs: Its inputs, with labels.
        regularizer: Where it has a teacher, that is the model as it was made, moved a little.
        kind: Of the step.
        options: Of the step.
    """
    proximal = regularizer.proximal_point()
    if proximal is not None and "teacher" not in options:
        teacher = Teacher(model, proximal, 10)
        teacher.tensors = {name: 1.1 * one for name, one in teacher.tensors.items()}
        options["teacher"] = teacher.teaching
    torch.manual_seed(_SEED)
    leaves = word_embeddings(model) if regularizer.perturbs_words else ()
    rows = range(next(iter(inputs.values())).shape[0])
    return kind(model, inputs, _compute, noise=Noise((_SEED,), rows), leaves=leaves, **options)


def _train(regularizer: Regularizer, step: Step) -> Tensor:
    """Back-propagate what a regularizer trains on one micro-batch, as Trainer does; returns the loss."""
    loss = regularizer.loss(step)
    loss.backward()
    if regularizer.repeats_updates:

        def again() -> None:
            step.again()
            regularizer.loss(step).backward()

        def apply() -> None:
            step.module.zero_grad()

        regularizer.update(Update(step.module, [MicroBatch(again, step)], torch.no_grad, apply))
    return loss.detach()


def _gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def _same(left: Mapping[str, Tensor | None], right: Mapping[str, Tensor | None]) -> bool:
    return all(
        one is other if one is None or other is None else torch.equal(one, other)
        for one, other in ((left[name], right[name]) for name in left)
    )


class _Watched(Step):
    """Asserts that searches leave nothing on the model, and notes how often they run."""

    searches = 0

    def search(self, at: Deltas | Perturbation, objective: Callable[[Pass], Tensor]) -> tuple[Pass, Deltas]:
        """Search, between two looks at the model."""
        with self._untouched():
            return super().search(at, objective)

    def search_below(self, block: nn.Module, at: Deltas, costates: Deltas) -> Deltas:
        """The same for one layer."""
        with self._untouched():
            return super().search_below(block, at, costates)

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        before = _gradients(self.module)
        yield
        self.searches += 1
        assert _same(before, _gradients(self.module)), "the search left a gradient on a parameter"


def check_search_leaves_no_gradient(regularizer: Regularizer) -> None:
    """A search gives no parameter a gradient, and what needs one afterwards is what needed one before."""
    model = tiny_classifier()
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    step = make_step(model, tiny_batch(), regularizer, _Watched)
    _train(regularizer, step)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needs
    if regularizer.cost().searches:
        assert isinstance(step, _Watched) and step.searches == regularizer.cost().searches
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not frozen, f"frozen parameters have a gradient: {frozen}"
    assert any(p.grad is not None and p.grad.any() for p in model.parameters()), "nothing was trained"


def check_modes_and_random_state(regularizer: Regularizer) -> None:
    """Modes, hooks, weights and torch's random state are those of a step without a regularizer."""
    model = tiny_classifier()
    list(model.modules())[3].eval()  # not all of a model need be in one mode
    modes = [one.training for one in model.modules()]
    hooks = [len(one._forward_hooks) for one in model.modules()]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(_SEED)
    _compute(model, tiny_batch())
    after = torch.get_rng_state()
    _train(regularizer, make_step(model, tiny_batch(), regularizer))
    assert torch.equal(torch.get_rng_state(), after), "the random state differs"
    assert [one.training for one in model.modules()] == modes, "a module is in another mode"
    assert [len(one._forward_hooks) for one in model.modules()] == hooks, "a hook stayed"
    assert _same(weights, dict(model.named_parameters())), "a weight moved"


def check_same_step_twice(regularizer: Regularizer) -> None:
    """The same batch at the same place of a run gives the same gradients, bit for bit."""
    found = []
    for _ in range(2):
        model = tiny_classifier()
        _train(regularizer, make_step(model, tiny_batch(), regularizer))
        found.append(_gradients(model))
    assert _same(*found)


def check_padding(regularizer: Regularizer) -> None:
    """Which tokens stand where the text is padded changes nothing."""
    batch = tiny_batch()
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 9)}
    found = []
    for inputs in (batch, other):
        model = tiny_classifier()
        found.append((_train(regularizer, make_step(model, inputs, regularizer)), _gradients(model)))
    (loss, gradients), (other_loss, others) = found
    torch.testing.assert_close(loss, other_loss, rtol=1e-9, atol=1e-12)
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, others[name], rtol=1e-6, atol=1e-9, msg=name)


def check_zero_weight(regularizer: Regularizer) -> None:
    """With weight 0, training is that without a regularizer, bit for bit, random state and all."""
    off = dataclasses.replace(regularizer, weight=0.0)
    ends = []
    for one in (None, off):
        model = tiny_classifier()
        _run(model, one)
        ends.append(({name: p.detach().clone() for name, p in model.named_parameters()}, torch.get_rng_state()))
    assert _same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def _run(model: nn.Module, regularizer: Regularizer | None, steps: int = 2, **arguments: Any) -> Any:
    """Train with a plain Trainer, accumulating two batches."""
    from transformers import Trainer, TrainingArguments

    batch = tiny_batch(16)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            **{
                "output_dir": folder,
                "max_steps": steps,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-2,
                "report_to": [],
                "save_strategy": "no",
                "disable_tqdm": True,
                "use_cpu": True,
                "logging_strategy": "no",
                **arguments,
            }
        )
        trainer = Trainer(model=model, args=args, train_dataset=rows)  # pyright: ignore[reportArgumentType]
        if regularizer is not None:
            hfadapt.regularize(trainer, regularizer)
        trainer.train()
    return trainer


class _Recorded(Step):
    """Notes where passes were made, and what comparisons that give no gradient were made with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.places: list[Deltas] = []
        self.flows: list[bool] = []

    @property
    def reference(self) -> Answers:
        """The reference, which notes whether a gradient comes back through it."""
        return tuple(type(one)(one.kind, self._noted(one.logits), one.share) for one in super().reference)

    def _noted(self, logits: Tensor) -> Tensor:
        alias = logits.view_as(logits)
        if alias.requires_grad:
            alias.register_hook(lambda gradient: self.flows.append(bool(gradient.any())))
        return alias

    def train(self, at: Deltas | Perturbation | None = None, *, last: bool = True) -> Pass:
        """Train there, and note where."""
        found = super().train(at, last=last)
        if found.deltas:
            self.places.append(tuple(one.detach().clone() for one in found.deltas))
        return found

    def perturb(self, at: Deltas | Perturbation) -> Pass:
        """Compare there, and note where."""
        found = super().perturb(at)
        self.places.append(tuple(one.detach().clone() for one in found.deltas))
        return found


class _Replaying(Step):
    """Makes passes where a recorded step made them; what had no gradient there is held fast."""

    places: Iterator[Deltas]
    held: Answers | None = None

    @property
    def reference(self) -> Answers:
        """The recorded answers where no gradient came back through them."""
        return super().reference if self.held is None else self.held

    def search(self, at: Deltas | Perturbation, objective: Callable[[Pass], Tensor]) -> tuple[Pass, Deltas]:
        """Search as always; what it finds is passed over."""
        return super().search(at, objective)

    def train(self, at: Deltas | Perturbation | None = None, *, last: bool = True) -> Pass:
        """Train where the recorded step did."""
        return super().train(at if at is None else next(self.places), last=last)

    def perturb(self, at: Deltas | Perturbation) -> Pass:
        """Compare where the recorded step did."""
        return super().perturb(next(self.places))


def check_finite_differences(regularizer: Regularizer) -> None:
    """The gradient is that of the loss at the perturbations found, which are held fast, in central differences."""
    if regularizer.repeats_updates:
        return  # what it trains on is no gradient of one loss; its own tests say what it is
    model = tiny_classifier()
    teacher = _fixed_teacher(model, regularizer)
    step = make_step(model, tiny_batch(), regularizer, _Recorded, **teacher)
    assert isinstance(step, _Recorded)
    _train(regularizer, step)
    held = None if any(step.flows) else tuple(one.detach() for one in Step.reference.__get__(step))
    parameters = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3)) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True) if p.grad is not None)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, one in zip(parameters, direction, strict=True):
                parameter.add_(one, alpha=sign * _MOVE)
        again = make_step(model, tiny_batch(), regularizer, _Replaying, backward=_nothing, **teacher)
        assert isinstance(again, _Replaying)
        again.places, again.held = iter(step.places), held
        values.append(float(regularizer.loss(again).detach()))
        with torch.no_grad():
            for parameter, one in zip(parameters, direction, strict=True):
                parameter.sub_(one, alpha=sign * _MOVE)
    measured = (values[0] - values[1]) / (2 * _MOVE)
    assert abs(slope - measured) <= 1e-6 * max(1.0, abs(measured)), f"gradient {slope}, differences {measured}"


def _nothing(loss: Tensor) -> None:
    """Back-propagate nothing."""


def _fixed_teacher(model: nn.Module, regularizer: Regularizer) -> dict[str, Any]:
    proximal = regularizer.proximal_point()
    if proximal is None:
        return {}
    teacher = Teacher(model, proximal, 10)
    teacher.tensors = {name: 1.1 * one for name, one in teacher.tensors.items()}
    return {"teacher": teacher.teaching}


def check_row_isolation(regularizer: Regularizer) -> None:
    """A row's perturbation does not depend on its neighbours, unless gradients are measured over the batch."""
    if getattr(regularizer, "scope", "example") == "batch":
        return
    batch = tiny_batch()
    other = {name: value.clone() for name, value in batch.items()}
    other["input_ids"][0] = torch.where(other["attention_mask"][0].bool(), 7, other["input_ids"][0])
    places = []
    for inputs in (batch, other):
        model = tiny_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        step = make_step(model, inputs, regularizer, _Recorded)
        assert isinstance(step, _Recorded)
        regularizer.loss(step)
        places.append(step.places)
    for left, right in zip(*places, strict=True):
        for one, two in zip(left, right, strict=True):
            torch.testing.assert_close(one[1:], two[1:], rtol=1e-6, atol=1e-12)


def check_nothing_to_learn(regularizer: Regularizer) -> None:
    """A model whose answers do not depend on its input, whose gradients are zero, gives finite numbers."""
    model: Any = tiny_classifier()
    with torch.no_grad():
        model.classifier.weight.zero_()
    loss = _train(regularizer, make_step(model, tiny_batch(), regularizer))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite() and all(one.isfinite().all() for one in gradients)


def check_config(regularizer: Regularizer) -> None:
    """Options survive JSON, copies are equal, and the class is registered under its name."""
    from .. import plugins

    assert type(regularizer).from_dict(regularizer.to_dict()) == regularizer
    assert copy.deepcopy(regularizer) == regularizer and hash(copy.copy(regularizer)) == hash(regularizer)
    assert plugins.regularizers()[regularizer.name] is type(regularizer)


CHECKS = [
    check_config,
    check_search_leaves_no_gradient,
    check_modes_and_random_state,
    check_same_step_twice,
    check_padding,
    check_zero_weight,
    check_finite_differences,
    check_row_isolation,
    check_nothing_to_learn,
]
