"""MultiTaskModel: rows, gradients, copies, saving and loading."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import hfadapt
from hfadapt import (
    Classification,
    Regression,
    Task,
)
from hfadapt.errors import RoutingError, TaskError
from hfadapt.testing.toy import toy_batch, toy_model, toy_rows, toy_tasks


@pytest.fixture(scope="module")
def model():
    return toy_model()


def test_a_mixed_batch_equals_each_row_alone(model):
    batch = toy_batch()
    together = model(**batch)
    for index, task in enumerate(model.tasks):
        row = {name: tensor[index : index + 1] for name, tensor in batch.items()}
        alone = model(**row)
        torch.testing.assert_close(
            model.logits_of(together, task.name), model.logits_of(alone, task.name), rtol=1e-5, atol=1e-5
        )


def test_loss_of_a_mixed_batch_is_the_mean_over_its_rows(model):
    batch = toy_batch()
    rows = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(6)]
    torch.testing.assert_close(
        model(**batch).loss, torch.stack([model(**row).loss for row in rows]).mean(), rtol=1e-5, atol=1e-6
    )


def test_loss_weights_scale_their_task():
    light, heavy = (toy_model([Task("a", data=toy_rows("class", 4), loss_weight=w)], seed=3) for w in (1.0, 2.5))
    batch = toy_batch([Task("a", data=toy_rows("class", 4))])
    torch.testing.assert_close(heavy(**batch).loss, 2.5 * light(**batch).loss)


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_only_tasks_in_the_batch_get_gradients(model):
    found = gradients(model, toy_batch(names=["topic", "topic"]))
    touched = {name for name, gradient in found.items() if gradient is not None}
    assert any(".topic." in name for name in touched)
    assert all(".topic." in f".{name}." for name in touched)


def test_all_tasks_taking_part_changes_neither_loss_nor_gradients(model, monkeypatch):
    batch = toy_batch()
    alone, loss = gradients(model, batch), model(**batch).loss
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert hfadapt.routing.all_tasks_take_part()
    torch.testing.assert_close(model(**batch).loss, loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(model, batch).items():
        if alone[name] is not None:
            torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6)
    part = gradients(model, toy_batch(names=["topic", "score"]))
    heads = {name for name in part if name.startswith("heads.") or ".hfadapt." in name}
    assert all(part[name] is not None for name in heads)
    assert not part["heads.same.out_proj.weight"].any() and not part["heads.span.out_proj.weight"].any()


@pytest.mark.parametrize("form", [["topic", "score"], [0, 1], torch.tensor([0, 1])], ids=["names", "numbers", "tensor"])
def test_task_ids_come_as_names_numbers_or_tensor(model, form):
    batch = toy_batch(names=["topic", "score"])
    want = model(**batch).logits
    batch["task_ids"] = form
    torch.testing.assert_close(model(**batch).logits, want)


def test_one_task_for_all_rows_and_a_default(model):
    batch = toy_batch(names=["topic", "topic"])
    want = model(**batch).logits
    del batch["task_ids"]
    torch.testing.assert_close(model(**batch, task_ids="topic").logits, want)
    with hfadapt.active(model, "topic"):
        torch.testing.assert_close(model(**batch).logits, want)


@pytest.mark.parametrize(
    ("given", "match"),
    [(None, "several tasks"), (["topic", "nope"], "unknown task"), (["topic"], "do not match"), (9, "unknown task")],
)
def test_unclear_task_ids_are_refused(model, given, match):
    batch = toy_batch(names=["topic", "topic"])
    batch["task_ids"] = given
    with pytest.raises(RoutingError, match=match):
        model(**batch)


def test_out_of_range_tensor_is_refused(model):
    batch = toy_batch(names=["topic"])
    batch["task_ids"] = torch.tensor([17])
    with pytest.raises(RoutingError, match="unknown task 17"):
        model(**batch)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "gpt2", "llama", "t5", "bart", "modernbert"])
def test_bases_of_every_shape_train(model_type, padding_side):
    small = toy_tasks()
    model = toy_model(small, model_type=model_type, seed=1)
    batch = toy_batch(small, padding_side=padding_side)
    found = gradients(model.train(), batch)
    assert all(found[f"heads.{task.name}.out_proj.weight"].isfinite().all() for task in small)
    assert all(found[name] is None for name, p in model.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize(("model_type", "pooling"), [("bert", "mean"), ("gpt2", "last"), ("t5", "last")])
def test_automatic_pooling_suits_the_base(model_type, pooling):
    assert toy_model(toy_tasks(), model_type=model_type).heads["topic"].pooling == pooling
    assert toy_model(toy_tasks(), method=None, model_type=model_type).heads["topic"].pooling == pooling


def test_a_pooler_that_the_base_lacks_is_refused():
    task = Task("t", Classification(2, pooling="pooler"))
    toy_model([task], model_type="bert")
    with pytest.raises(TaskError, match=r"has no pooler.*DistilBertModel"):
        toy_model([task], model_type="distilbert")


def test_a_mixed_batch_compiles_into_one_graph():
    model, batch = toy_model(toy_tasks()), toy_batch(toy_tasks())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    want, got = model(**batch), compiled(**batch)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-6)


def test_copies_are_independent_and_equal(model):
    batch = toy_batch()
    want = model(**batch).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(**batch).logits, want, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert hfadapt.attachment(twin) is hfadapt.attachment(twin.base)
    torch.testing.assert_close(model(**batch).logits, want, rtol=0, atol=0)


def test_full_state_dict_loads_strictly(model):
    twin = toy_model(seed=9)
    assert set(twin.state_dict()) == set(model.state_dict())
    twin.load_state_dict(model.state_dict())
    batch = toy_batch()
    torch.testing.assert_close(twin(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_regression_within_bounds_starts_inside_them():
    task = Task("r", Regression(10.0, 20.0), data=[{"text": "w1", "label": 12.0}])
    model = toy_model([task])
    assert model.logits_of(model(**toy_batch([task])), "r").item() == pytest.approx(10, abs=5)
