"""Weights of adapters from a few examples: of the very adapter that combine makes, without gradients or traces."""

from __future__ import annotations

import sys

import pytest
import torch

import hfadapt
from hfadapt.adapters.evolution import minimize
from hfadapt.errors import AttachError, CompositionError, ConfigError, DataError, HFAdaptError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks

HEAD = "sequence-classification"
BATCH = {**tiny_inputs("bert", HEAD), "labels": torch.tensor([0, 1, 1])}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = tiny_model("bert", HEAD).eval()
    for name, r in (("a", 2), ("b", 3), ("c", 2)):
        hfadapt.attach(model, hfadapt.LoRA(r, 4.0, ("query", "ffn_out")), name, verify=False)
    randomize(model)
    return model


def facts(model):
    state = hfadapt.attachment(model)
    parameters = {name: (p.requires_grad, p.grad, p.detach().clone()) for name, p in model.named_parameters()}
    return parameters, state.names, state.active, dict(state.compositions), [m.training for m in model.modules()]


def require_same(before, after):
    assert before[1:] == after[1:] and before[0].keys() == after[0].keys()
    for name, (flag, _, tensor) in before[0].items():
        assert after[0][name][:2] == (flag, None) and torch.equal(after[0][name][2], tensor), name


def logits(model, **_):
    return model(**tiny_inputs("bert", HEAD)).logits


def distance(target):
    return lambda model, batch: (logits(model) - target).square().mean()


def test_the_search_finds_a_minimum_in_its_box_and_asks_as_often_as_it_may():
    asked = []

    def valley(point):
        asked.append(point)
        return (point[0] - 0.7) ** 2 + 10 * (point[1] - 2 * point[0]) ** 2 + (point[2] - 9) ** 2

    options = {"steps": 150, "bound": 1.5, "spread": 0.5, "seed": 3}
    best, least = minimize(valley, [0.0, 0.0, 0.0], **options)
    assert len(asked) == 150 and asked[0] == [0, 0, 0] and least == min(map(valley, asked[:150]))
    assert best == pytest.approx([0.75, 1.5, 1.5], abs=0.1) or least < 56.3
    assert all(abs(x) <= 1.5 for point in asked for x in point)
    assert minimize(valley, [0.0, 0.0, 0.0], **options) == (best, least)
    assert minimize(lambda point: abs(point[0] - 0.3), [0.0], **options)[0] == pytest.approx([0.3], abs=1e-2)


def test_without_the_package_the_extra_is_named_and_the_model_stays(model, monkeypatch):
    before = facts(model)
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(ConfigError, match=r"hfadapt\[fit\]"):
        hfadapt.fit_weights(model, ["a", "b"], BATCH, 3)
    require_same(before, facts(model))


def test_weights_are_found_and_nothing_else_changes(model):
    hfadapt.combine(model, {"a": 1.1, "b": -0.5}, method="cat", name="wanted", heads=False)
    with hfadapt.active(model, "wanted"), torch.no_grad():
        target = logits(model)
    model.train()
    before = facts(model)
    found = hfadapt.fit_weights(model, ["a", "b"], BATCH, 48, heads=False, penalty=0, loss=distance(target), seed=1)
    assert found == pytest.approx({"a": 1.1, "b": -0.5}, abs=0.2)
    require_same(before, facts(model))


def test_what_is_measured_is_what_combine_makes(model):
    seen = []

    def loss(one, batch):
        assert not torch.is_grad_enabled() and not one.training
        seen.append(one(**batch).loss)
        return seen[-1]

    weights = hfadapt.fit_weights(model, ["a", "b"], [BATCH], 12, method="svd", penalty=0, loss=loss)
    assert len(seen) == 12
    for given, want in ((weights, min(seen)), ({"a": 0.5, "b": 0.5}, seen[0])):  # equal ones are the first
        hfadapt.combine(model, given, method="svd", name="ab")
        with hfadapt.active(model, "ab"), torch.no_grad():
            torch.testing.assert_close(model(**BATCH).loss, want)
        hfadapt.detach(model, "ab")


def test_a_penalty_makes_weights_small_and_steps_never_make_it_worse(model):
    def size(penalty, steps):
        found = hfadapt.fit_weights(model, ["a", "b", "c"], iter([BATCH]), steps, heads=False, penalty=penalty)
        return sum(map(abs, found.values()))

    assert size(1e3, 1) == pytest.approx(1.0)
    assert size(1e3, 24) < 0.8


def test_an_error_of_the_loss_leaves_the_model_as_it_was(model):
    before, calls = facts(model), []

    def loss(one, batch):
        calls.append(hfadapt.attachment(one).names)
        if len(calls) == 3:
            raise KeyError("mine")
        return torch.tensor(1.0)

    with pytest.raises(KeyError, match="mine"):
        hfadapt.fit_weights(model, ["a", "b"], BATCH, loss=loss)
    assert calls[0][:3] == ("a", "b", "c")
    require_same(before, facts(model))
    with pytest.raises(DataError, match="finite loss"):
        hfadapt.fit_weights(model, ["a", "b"], BATCH, 3, loss=lambda *_: torch.tensor(float("nan")))
    require_same(before, facts(model))


def test_bad_input_is_refused_before_anything_runs(model):
    before = facts(model)
    hfadapt.attach(model, "seq_bn", "x", verify=False)
    bad = [
        ({"adapters": ["a", "nobody"]}, AttachError),
        ({"adapters": []}, CompositionError),
        ({"adapters": ["a", "x"]}, CompositionError),
        ({"method": "sum"}, CompositionError),
        ({"method": "linear", "adapters": ["a", "b"]}, CompositionError),  # ranks differ
        ({"data": []}, DataError),
        ({"data": [{"labels": 1}]}, DataError),
        ({"data": {"input_ids": BATCH["input_ids"]}}, DataError),  # no labels
        ({"loss": lambda *_: 3.0}, DataError),
        *(({"steps": steps}, HFAdaptError) for steps in (0, 1.5, "many", None)),
        *(({"penalty": value}, HFAdaptError) for value in (-1, float("nan"), "l1")),
        ({"bound": 0}, HFAdaptError),
    ]
    for changed, error in bad:
        with pytest.raises(error):
            hfadapt.fit_weights(model, **{"adapters": ["a", "c"], "data": BATCH, **changed})
    hfadapt.detach(model, "x")
    require_same(before, facts(model))
    many = toy_model(toy_tasks(), method="lora")
    with pytest.raises(AttachError, match=r"model\.base"):
        hfadapt.fit_weights(many, ["topic"], BATCH)
