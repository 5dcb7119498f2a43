"""MultiTaskModel: rows, gradients, copies, saving and loading."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
import transformers

import hfadapt
from hfadapt import (
    Classification,
    MultiLabel,
    MultiTaskModel,
    OwnHead,
    Regression,
    Span,
    Task,
    TaskMixture,
    TokenClassification,
)
from hfadapt.errors import CheckpointError, RoutingError, TaskError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_rows, toy_tasks

MORE = [
    Task("tags", TokenClassification(3), data=[{"text": ["w1", "w2", "w5"], "label": [0, 2, 1]}]),
    Task("span", Span(), data=[{"text": "w1", "text_pair": "w2 w3", "label": {"text": ["w3"], "answer_start": [3]}}]),
    Task("labels", MultiLabel(4), data=[{"text": "w7 w8", "label": [0, 2]}]),
]


def tasks():
    return [*toy_tasks(), *MORE]


def make(chosen=None, method="low_rank", model_type="bert", seed=0, **options):
    torch.manual_seed(seed)
    base = tiny_model(model_type)
    model = MultiTaskModel.from_base(base, tasks() if chosen is None else chosen, method, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def batch_of(chosen=None, names=None, padding_side="right"):
    mix = TaskMixture(tasks() if chosen is None else chosen, tiny_tokenizer(padding_side))
    names = names or [task.name for task in mix.tasks]
    return mix.collator([mix.dataset("train", [name])[0] for name in names])


@pytest.fixture(scope="module")
def model():
    return make()


def test_a_mixed_batch_equals_each_row_alone(model):
    batch = batch_of()
    together = model(**batch)
    for index, task in enumerate(model.tasks):
        row = {name: tensor[index : index + 1] for name, tensor in batch.items()}
        alone = model(**row)
        torch.testing.assert_close(
            model.logits_of(together, task.name), model.logits_of(alone, task.name), rtol=1e-5, atol=1e-5
        )


def test_loss_of_a_mixed_batch_is_the_mean_over_its_rows(model):
    batch = batch_of()
    rows = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(6)]
    torch.testing.assert_close(
        model(**batch).loss, torch.stack([model(**row).loss for row in rows]).mean(), rtol=1e-5, atol=1e-6
    )


def test_loss_weights_scale_their_task():
    light, heavy = (make([Task("a", data=toy_rows("class", 4), loss_weight=w)], seed=3) for w in (1.0, 2.5))
    batch = batch_of([Task("a", data=toy_rows("class", 4))])
    torch.testing.assert_close(heavy(**batch).loss, 2.5 * light(**batch).loss)


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_only_tasks_in_the_batch_get_gradients(model):
    found = gradients(model, batch_of(names=["topic", "topic"]))
    touched = {name for name, gradient in found.items() if gradient is not None}
    assert any(".topic." in name for name in touched)
    assert all(".topic." in f".{name}." for name in touched)


def test_all_tasks_taking_part_changes_neither_loss_nor_gradients(model, monkeypatch):
    batch = batch_of()
    alone, loss = gradients(model, batch), model(**batch).loss
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert hfadapt.routing.all_tasks_take_part()
    torch.testing.assert_close(model(**batch).loss, loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(model, batch).items():
        if alone[name] is not None:
            torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6)
    part = gradients(model, batch_of(names=["topic", "score"]))
    heads = {name for name in part if name.startswith("heads.") or ".hfadapt." in name}
    assert all(part[name] is not None for name in heads)
    assert not part["heads.same.out_proj.weight"].any() and not part["heads.span.out_proj.weight"].any()


@pytest.mark.parametrize("form", [["topic", "score"], [0, 1], torch.tensor([0, 1])], ids=["names", "numbers", "tensor"])
def test_task_ids_come_as_names_numbers_or_tensor(model, form):
    batch = batch_of(names=["topic", "score"])
    want = model(**batch).logits
    batch["task_ids"] = form
    torch.testing.assert_close(model(**batch).logits, want)


def test_one_task_for_all_rows_and_a_default(model):
    batch = batch_of(names=["topic", "topic"])
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
    batch = batch_of(names=["topic", "topic"])
    batch["task_ids"] = given
    with pytest.raises(RoutingError, match=match):
        model(**batch)


def test_out_of_range_tensor_is_refused(model):
    batch = batch_of(names=["topic"])
    batch["task_ids"] = torch.tensor([17])
    with pytest.raises(RoutingError, match="unknown task 17"):
        model(**batch)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "gpt2", "llama", "t5", "bart", "modernbert"])
def test_bases_of_every_shape_train(model_type, padding_side):
    small = toy_tasks()
    model = make(small, model_type=model_type, seed=1)
    batch = batch_of(small, padding_side=padding_side)
    found = gradients(model.train(), batch)
    assert all(found[f"heads.{task.name}.out_proj.weight"].isfinite().all() for task in small)
    assert all(found[name] is None for name, p in model.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize(("model_type", "pooling"), [("bert", "mean"), ("gpt2", "last"), ("t5", "last")])
def test_automatic_pooling_suits_the_base(model_type, pooling):
    assert make(toy_tasks(), model_type=model_type).heads["topic"].pooling == pooling
    assert make(toy_tasks(), method=None, model_type=model_type).heads["topic"].pooling == pooling


def test_a_pooler_that_the_base_lacks_is_refused():
    task = Task("t", Classification(2, pooling="pooler"))
    make([task], model_type="bert")
    with pytest.raises(TaskError, match=r"has no pooler.*DistilBertModel"):
        make([task], model_type="distilbert")


def test_own_head_uses_the_bases_loss():
    stock = tiny_model("bert", "sequence-classification", num_labels=3)
    rows = [{"text": f"w{i} w3", "label": i % 3} for i in range(4)]
    chosen = [Task("a", OwnHead(), data=rows), Task("b", OwnHead(), data=rows)]
    batch = batch_of(chosen, ["a", "a", "a"])
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    want = stock(**inputs, labels=batch["labels"][:, 0].long())
    model = MultiTaskModel.from_base(stock, chosen, None).eval()
    got = model(**batch)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.logits, want.logits)
    assert model.base.classifier.weight.requires_grad


def test_own_head_on_tokens_takes_labels_of_any_width():
    stock = tiny_model("bert", "token-classification", num_labels=3)
    model = MultiTaskModel.from_base(stock, [Task("a", OwnHead())], "low_rank").eval()
    ids = torch.tensor([[2, 5, 9, 3], [2, 6, 3, 0]])
    labels = torch.tensor([[-100.0, 1, 2], [-100, 0, -100]])
    got = model(input_ids=ids, labels=labels)
    logits = got.logits.reshape(2, 4, 3)
    want = torch.nn.functional.cross_entropy(logits[:, :3].flatten(0, 1), labels.flatten().long(), ignore_index=-100)
    torch.testing.assert_close(got.loss, want)


TEXTS = [{"text": f"w{i} w{i + 1}", "label": f"w{i + 2} w{i + 3}"} for i in range(6)]


def test_own_head_learns_texts_with_an_encoder_decoder():
    tokenizer = tiny_tokenizer(padding_side="left")
    chosen = [Task(name, OwnHead(labels="text"), data=TEXTS) for name in ("a", "b")]
    mix = TaskMixture(chosen, tokenizer)
    batch = mix.collator([mix.dataset("train", ["a"])[0], mix.dataset("train", ["b"])[1]])
    assert batch["labels"].tolist() == [[2, 6, 7, 3], [2, 7, 8, 3]]
    model = MultiTaskModel.from_base(tiny_model("t5", "seq2seq-lm"), chosen, "low_rank").eval()
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_own_head_learns_continuations_with_a_causal_model(padding_side):
    tokenizer = tiny_tokenizer(padding_side)
    tokenizer.eos_token = "[SEP]"
    rows = [{"text": "w0 w1", "label": "w2"}, {"text": "w0 w1 w2 w3", "label": "w4 w5"}]
    chosen = [Task("a", OwnHead(labels="continuation"), data=rows)]
    mix = TaskMixture(chosen, tokenizer)
    batch = mix.collator([mix.dataset("train")[i] for i in range(2)])
    for row, answer in enumerate(([6, 3], [8, 9, 3])):
        kept = batch["labels"][row] >= 0
        assert batch["labels"][row][kept].tolist() == batch["input_ids"][row][kept].tolist() == answer
    model = MultiTaskModel.from_base(tiny_model("gpt2", "causal-lm"), chosen, "low_rank").eval()
    assert model(**batch).loss.isfinite()


def test_a_prompt_that_leaves_no_room_for_its_continuation_is_cut():
    rows = [{"text": "w1 " * 40, "label": "w2 w3"}]
    mix = TaskMixture([Task("a", OwnHead(labels="continuation"), data=rows, max_length=16)], tiny_tokenizer())
    row = mix.train[0]
    assert len(row["input_ids"]) == 16 and row["input_ids"][-2:].tolist() == [6, 7]


def test_own_head_on_a_bare_base_is_refused():
    with pytest.raises(TaskError, match="OwnHead needs a base with a head"):
        MultiTaskModel.from_base(tiny_model("bert"), [Task("a", OwnHead())], None)


def test_a_mixed_batch_compiles_into_one_graph():
    model, batch = make(toy_tasks()), batch_of(toy_tasks())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    want, got = model(**batch), compiled(**batch)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-6)


def test_copies_are_independent_and_equal(model):
    batch = batch_of()
    want = model(**batch).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(**batch).logits, want, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert hfadapt.attachment(twin) is hfadapt.attachment(twin.base)
    torch.testing.assert_close(model(**batch).logits, want, rtol=0, atol=0)


def test_full_state_dict_loads_strictly(model):
    twin = make(seed=9)
    assert set(twin.state_dict()) == set(model.state_dict())
    twin.load_state_dict(model.state_dict())
    batch = batch_of()
    torch.testing.assert_close(twin(**batch).logits, model(**batch).logits, rtol=0, atol=0)


@pytest.fixture(scope="module")
def named_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(named_base, tmp_path_factory):
    torch.manual_seed(5)
    model = MultiTaskModel.from_pretrained(named_base, tasks=tasks(), method="low_rank")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("saved") / "out"
    model.save_pretrained(folder)
    return model.eval(), folder


def test_reloading_gives_the_same_predictions_to_the_last_bit(saved):
    model, folder = saved
    batch = batch_of()
    for again in (MultiTaskModel.from_pretrained(folder), hfadapt.load(folder)):
        assert not again.training
        assert [task.to_dict() for task in again.tasks] == [task.to_dict() for task in model.tasks]
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)
        assert {n for n, p in again.named_parameters() if p.requires_grad} == {
            n for n, p in model.named_parameters() if p.requires_grad
        }


def test_saved_folder_holds_no_frozen_base_weight_and_nothing_twice(saved):
    model, folder = saved
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "model.safetensors").samefile(folder / "adapter_model.safetensors")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (folder / "model.safetensors").stat().st_size < 4 * trainable + 40_000


def test_auto_model_gives_the_adapted_model(saved):
    model, folder = saved
    again = transformers.AutoModel.from_pretrained(folder)
    batch = batch_of()
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


@pytest.mark.parametrize("first", ["hfadapt", "hfadapt.model"])
def test_auto_model_gives_the_adapted_model_when_hfadapt_is_imported_first(saved, first):
    model, folder = saved
    code = f"""
import {first}
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({str(folder)!r})
ids = torch.tensor([[2, 5, 9, 3]])
print(type(model).__name__, model(input_ids=ids, task_ids="topic").logits[0, :2].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    want = model(input_ids=torch.tensor([[2, 5, 9, 3]]), task_ids="topic").logits[0, :2].tolist()
    assert done.stdout.strip().splitlines()[-1] == f"MultiTaskModel {want}"


def test_transformers_without_hfadapt_refuses_the_folder(saved):
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({str(saved[1])!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "hfadapt" in done.stderr


def test_a_base_without_a_name_is_asked_for_and_never_made_up(tmp_path):
    model = make(toy_tasks())
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="base=model"):
        MultiTaskModel.from_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path, base=tiny_model("bert"))
    batch = batch_of(toy_tasks())
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_another_base_is_refused(saved):
    with pytest.raises(CheckpointError, match="another base"):
        MultiTaskModel.from_pretrained(saved[1], base=tiny_model("bert", num_hidden_layers=3))


@pytest.mark.parametrize("damage", ["truncated", "no weights", "config", "renamed tensor", "no adapter config"])
def test_damaged_folders_are_refused(saved, tmp_path, damage):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(saved[1], folder)
    weights = folder / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "config":
        (folder / "adapter_config.json").write_text("{")
    elif damage == "no adapter config":
        (folder / "adapter_config.json").unlink()
    else:
        tensors = load_file(weights)
        tensors["heads.nobody.out_proj.weight"] = tensors.pop("heads.topic.out_proj.weight")
        save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"adapter|tensors differ"):
        MultiTaskModel.from_pretrained(folder)


def test_tasks_for_a_saved_folder_and_no_tasks_for_a_base_are_refused(saved, named_base):
    with pytest.raises(TaskError, match="knows its own tasks"):
        MultiTaskModel.from_pretrained(saved[1], tasks=toy_tasks())
    with pytest.raises(TaskError, match="no tasks"):
        MultiTaskModel.from_pretrained(named_base)


@pytest.mark.parametrize("method", ["low_rank", None])
def test_a_trained_base_is_saved_and_needs_no_original(tmp_path, method):
    model = make(toy_tasks(), method=method, train_base=True)
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    batch = batch_of(toy_tasks())
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_shared_parameters_are_saved_once_and_reload_tied(named_base, tmp_path):
    torch.manual_seed(2)
    model = MultiTaskModel.from_pretrained(named_base, tasks=toy_tasks(), method="pal").eval()
    model.save_pretrained(tmp_path)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * trainable + 40_000
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    batch = batch_of(toy_tasks())
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_a_full_disk_leaves_the_folder_as_it_was(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hfadapt.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        model.save_pretrained(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_heads_alone_are_saved_without_the_base(named_base, tmp_path):
    model = MultiTaskModel.from_pretrained(named_base, tasks=toy_tasks()).eval()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith("heads.")
    }
    model.save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "adapter_config.json").read_text())["adapters"]) == []
    batch = batch_of(toy_tasks())
    again = MultiTaskModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_own_head_is_saved_with_the_adapters(tmp_path):
    rows = [{"text": f"w{i} w3", "label": i % 3} for i in range(4)]
    chosen = [Task("a", OwnHead(), data=rows)]
    tiny_model("bert", "sequence-classification", num_labels=3).save_pretrained(tmp_path / "base")
    model = MultiTaskModel.from_pretrained(tmp_path / "base", tasks=chosen, method="low_rank").eval()
    with torch.no_grad():
        model.base.classifier.weight.normal_()
    model.save_pretrained(tmp_path / "out")
    batch = batch_of(chosen)
    again = MultiTaskModel.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_regression_within_bounds_starts_inside_them():
    task = Task("r", Regression(10.0, 20.0), data=[{"text": "w1", "label": 12.0}])
    model = make([task])
    assert model.logits_of(model(**batch_of([task])), "r").item() == pytest.approx(10, abs=5)
