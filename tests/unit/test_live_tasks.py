"""Tasks come and go while a model lives: adapter and head with them, and the ids of the others stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

import hfadapt
from hfadapt import Classification, MultiTaskModel, OwnHead, Regression, Task
from hfadapt.errors import CheckpointError, ConfigError, RoutingError, TaskError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.training.checks import require_same_tasks

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "data"
ROWS = tiny_inputs("bert")


def base():
    torch.manual_seed(0)
    return tiny_model("bert").eval()


def model_of(*tasks, method="lora", seed=1):
    model = MultiTaskModel.from_base(base(), tasks, method)
    torch.manual_seed(seed)
    if method is not None:
        randomize(model.base)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@torch.no_grad()
def logits(model, task):
    output = model(**ROWS, task_ids=task)
    return model.logits_of(output, task)


@pytest.fixture
def saved(tmp_path):
    """A model of two tasks, and its folder."""
    model = model_of(Task("c", Classification(3)), Task("d", Regression()), method="pfeiffer", seed=2)
    model.save_pretrained(tmp_path / "cd")
    return model, tmp_path / "cd"


def test_a_task_is_added_with_adapter_and_head_and_the_others_stay(saved):
    theirs, folder = saved
    model = model_of(Task("a", Classification(2)), Task("b", Classification(4)))
    before = {name: logits(model, name) for name in "ab"}
    trains = {key: p.requires_grad for key, p in model.named_parameters()}
    assert model.add_task(folder, "c") == theirs.tasks[0]
    assert [task.name for task in model.tasks] == ["a", "b", "c"] and model.ids == (0, 1, 2)
    assert torch.equal(logits(model, "c"), logits(theirs, "c"))
    assert all(torch.equal(logits(model, name), before[name]) for name in "ab")
    assert {key: p.requires_grad for key, p in model.named_parameters() if key in trains} == trains
    assert all(p.requires_grad for p in model.heads["c"].parameters())
    mixed = model(**ROWS, task_ids=[2, 0, 1])
    assert torch.allclose(mixed.logits[0, :3], logits(theirs, "c")[0], atol=1e-6)


def test_a_task_is_removed_and_the_ids_of_the_others_stay(tmp_path, caplog):
    model = model_of(Task("a", Classification(2)), Task("b", Classification(4)), Task("c", Regression()))
    before = {name: logits(model, name) for name in "abc"}
    model.remove_task("a")
    assert model.ids == (1, 2) and "a" not in model.heads and "a" not in hfadapt.attachment(model).names
    assert torch.equal(logits(model, "b"), before["b"])
    output = model(**ROWS, task_ids=torch.tensor([2, 1, 2]))
    assert output.task_ids.tolist() == [2, 1, 2]
    torch.testing.assert_close(model.logits_of(output, "c"), before["c"][[0, 2]], rtol=1e-5, atol=1e-6)
    for gone in (0, [0, 1, 2], "a"):
        with pytest.raises(RoutingError):
            model(**ROWS, task_ids=gone)
    with pytest.raises(ConfigError, match="removed"):
        require_same_tasks(model, type("Mixture", (), {"tasks": model.tasks})())
    model.save_pretrained(tmp_path / "bc")
    assert "gaps" in caplog.text
    again = MultiTaskModel.from_pretrained(tmp_path / "bc", base=base())
    assert again.ids == (0, 1) and torch.equal(logits(again, "c"), before["c"])
    model.add_task(tmp_path / "bc", "b") if "b" not in model.heads else model.remove_task("c")
    assert model.ids == (1,) and torch.equal(model(**ROWS).task_ids, torch.ones(3, dtype=torch.int64))
    with pytest.raises(TaskError, match="at least one"):
        model.remove_task("b")


def test_what_comes_and_goes_leaves_no_trace(saved):
    _, folder = saved
    model = model_of(Task("a", Classification(2)), Task("b", Classification(4)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.add_task(folder, "d")
    model.remove_task("d")
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert model.ids == (0, 1)
    model.add_task(folder, "c")
    assert model.ids == (0, 1, 2)


def test_heads_alone_come_and_go_too(tmp_path):
    model_of(Task("c", Classification(3)), method=None, seed=2).save_pretrained(tmp_path / "c")
    model = model_of(Task("a", Classification(2)), method=None)
    model.add_task(tmp_path / "c")
    assert logits(model, "c").shape == (3, 3)
    model.remove_task("a")
    assert model.ids == (1,)


def test_a_folder_of_another_library_becomes_a_task(tmp_path):
    kind = BertForSequenceClassification
    stock = kind.from_pretrained(GOLDEN / "adapterhub/saved/base", num_labels=3)
    rows = {"input_ids": torch.arange(5, 15)[None], "attention_mask": torch.ones(1, 10, dtype=torch.int64)}
    alone = hfadapt.load(GOLDEN / "peft/saved/lora_seq_cls", kind.from_pretrained(GOLDEN / "adapterhub/saved/base"))
    with torch.no_grad():
        want = alone(**rows).logits
    model = MultiTaskModel.from_base(stock, [Task("a", OwnHead())], "lora").eval()

    @torch.no_grad()
    def answers(model, task):
        return model(**rows, task_ids=task).logits

    before = answers(model, "a")
    assert hfadapt.load(GOLDEN / "peft/saved/lora_seq_cls", model, name="mail") is model
    model.add_task(GOLDEN / "adapterhub/saved/head_static/with_adapter", "news")
    assert [task.name for task in model.tasks] == ["a", "mail", "news"]
    torch.testing.assert_close(answers(model, "mail"), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(answers(model, "a"), before)
    model.save_pretrained(tmp_path / "all")
    fresh = kind.from_pretrained(GOLDEN / "adapterhub/saved/base", num_labels=3)
    again = MultiTaskModel.from_pretrained(tmp_path / "all", base=fresh)
    for name in ("a", "mail", "news"):
        assert torch.equal(answers(again, name), answers(model, name))


def test_an_adapter_without_a_head_takes_the_head_of_its_task(tmp_path):
    one = base()
    hfadapt.attach(one, "lora", "x")
    randomize(one)
    hfadapt.save(one, tmp_path / "own")
    hfadapt.export(one, tmp_path / "peft", format="peft")
    for folder in ("own", "peft"):
        model = model_of(Task("a", Classification(2)))
        with pytest.raises(TaskError, match="needs a head"):
            model.add_task(tmp_path / folder)
        model.add_task(tmp_path / folder, task=Task("x", Classification(5)))
        assert logits(model, "x").shape == (3, 5)
        with torch.no_grad():
            got, want = (m(**ROWS, task_ids=["x"] * 3).last_hidden_state for m in (model.base, one))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused_and_the_model_is_as_it_was(saved, tmp_path):
    _, folder = saved
    model = model_of(Task("a", Classification(2)), Task("c", Classification(4)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = (folder / "model.safetensors").read_bytes()
    for name, error, match in (
        (None, TaskError, "which task"),
        ("z", TaskError, "which task"),
        ("c", TaskError, "there is a task"),
    ):
        with pytest.raises(error, match=match):
            model.add_task(folder, name)
    (folder / "model.safetensors").write_bytes(weights[:-3])
    with pytest.raises(CheckpointError):
        model.add_task(folder, "d")
    with pytest.raises(CheckpointError):
        model.add_task(tmp_path / "nowhere")
    model.use("a", "c")
    with pytest.raises(TaskError, match="go through"):
        model.remove_task("c")
    with pytest.raises(RoutingError):
        model.remove_task("z")
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert model.ids == (0, 1)
