"""A task whose rows go through a composition, or another task's adapter, before they meet the task's own head."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt import Average, Fuse, MultiTaskModel, Stack
from hfadapt.errors import AttachError, CompositionError, RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_batch, toy_model, toy_tasks


def random_model(method="bottleneck"):
    model = toy_model(toy_tasks(), method=method)
    randomize(model.base)
    return model.eval()


@pytest.fixture
def model():
    return random_model()


def logits(model, tasks, **changes):
    return model(**{**toy_batch(toy_tasks(), tasks), **changes}).logits


CHOICES = (Stack("score", "topic"), Average("topic", "score"), "score")


@pytest.mark.parametrize("choice", CHOICES, ids=["stack", "average", "another task's adapter"])
def test_rows_meet_the_composition_and_then_the_tasks_own_head(model, choice):
    batch = toy_batch(toy_tasks(), ["topic", "topic"])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with hfadapt.active(model.base, choice):
        hidden = model.base(**inputs)[0]
    model.use("topic", choice)
    from hfadapt.multitask.heads import HeadFeatures

    want = model.heads["topic"](HeadFeatures(hidden, batch["attention_mask"]))
    torch.testing.assert_close(logits(model, ["topic", "topic"])[:, :2], want, rtol=0, atol=0)


def test_a_route_changes_its_own_task_alone_also_in_mixed_batches(model):
    before = {task: logits(model, [task] * 2) for task in ("topic", "score")}
    model.use("topic", Stack("score", "topic"))
    alone = {task: logits(model, [task] * 2) for task in ("topic", "score")}
    assert not torch.allclose(alone["topic"], before["topic"])
    assert torch.equal(alone["score"], before["score"])
    mixed = logits(model, ["topic", "score", "topic"])
    batch = toy_batch(toy_tasks(), ["topic", "score", "topic"])
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        torch.testing.assert_close(mixed[row : row + 1], model(**one).logits)
    model.use("topic", None)
    assert torch.equal(logits(model, ["topic"] * 2), before["topic"])


def test_fusion_over_tasks_serves_one_of_them_and_trains(model):
    from hfadapt_plugins.methods.fusion import add_fusion

    add_fusion(model.base, Fuse("topic", "score"), activate_it=False)
    model.use("topic", Fuse("topic", "score"))
    model(**toy_batch(toy_tasks(), ["topic", "topic"])).loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(".fusions." in name for name in moved)
    assert all(".fusions." in name or name.startswith("heads.topic") for name in moved)


def test_routes_are_saved_and_reload_bitwise(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "base")
    model = MultiTaskModel.from_pretrained(tmp_path / "base", tasks=toy_tasks(), method="bottleneck").eval()
    randomize(model.base)
    model.use("topic", Stack("score", "topic"))
    model.use("score", "topic")
    model.save_pretrained(tmp_path / "out")
    again = MultiTaskModel.from_pretrained(tmp_path / "out")
    assert again.routes == model.routes
    for task in ("topic", "score"):
        assert torch.equal(logits(again, [task] * 2), logits(model, [task] * 2))


def test_what_does_not_exist_is_refused(model):
    with pytest.raises(RoutingError, match="unknown task 'topik'"):
        model.use("topik", "score")
    with pytest.raises(AttachError, match="no adapter 'nobody'"):
        model.use("topic", "nobody")
    with pytest.raises(CompositionError, match="not attached"):
        model.use("topic", Stack("topic", "nobody"))
    with pytest.raises(AttachError, match="no adapter is attached"):
        toy_model(toy_tasks(), method=None).use("topic", "score")
    assert model.routes == {}
