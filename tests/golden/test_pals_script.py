"""Checkpoints of the PALs paper's script become multi-task models with its numbers."""

from __future__ import annotations

import json

import pytest
import torch
from golden_files import metadata_of
from golden_pals import DATA, TASKS, available, read

import hfadapt
from hfadapt.errors import CheckpointError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def files_of(name, folder, **changed):
    """What the script's ``torch.save(model.state_dict())`` and its config file hold."""
    golden = read(name)
    weights = {key: tensor.float() for key, tensor in golden.weights.items()}
    weights |= {alias: weights[key] for alias, key in metadata_of(DATA / f"{name}.safetensors", "aliases").items()}
    torch.save(weights, folder / "model.bin")
    (folder / "config.json").write_text(json.dumps({**golden.config, **changed}))
    return golden, (folder / "model.bin", folder / "config.json")


@pytest.mark.parametrize("name", available())
def test_every_golden_gives_its_logits(name, tmp_path):
    golden, files = files_of(name, tmp_path)
    model = hfadapt.load_bert_n_pals(*files)
    assert [task.name for task in model.tasks] == list(TASKS) and not model.training
    inputs = {key: golden.input(key) for key in INPUTS}
    for task in TASKS:
        with torch.no_grad():
            got = model(**inputs, task_ids=task).logits
        want = golden.output(f"{task}.logits")  # ours are padded to the widest head
        torch.testing.assert_close(got[:, : want.shape[1]].double(), want, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def pals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    return files_of("pals", folder)[1]


def test_it_trains_with_its_base_and_comes_back_from_a_folder_of_ours(pals, tmp_path):
    head = hfadapt.Classification(3, pooling="pooler", dropout=0.0)
    model = hfadapt.load_bert_n_pals(*pals, tasks=[hfadapt.Task("news", head), "score"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    batch = {key: read("pals").input(key) for key in INPUTS}
    model(**batch, task_ids=["news", "score", "news"], labels=torch.tensor([1.0, 0.3, 2.0])).loss.backward()
    model.save_pretrained(tmp_path)
    again = hfadapt.load(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch, task_ids="news").logits, model(**batch, task_ids="news").logits)


def test_safetensors_and_names_of_data_parallel_are_read(pals, tmp_path):
    from safetensors.torch import save_file

    weights = {f"module.{key}": tensor.clone() for key, tensor in torch.load(pals[0]).items()}
    save_file(weights, tmp_path / "model.safetensors")
    model = hfadapt.load_bert_n_pals(tmp_path / "model.safetensors", pals[1])
    assert torch.equal(model.heads["task0"].out_proj.weight, weights["module.classifier.0.weight"])


def drop(key):
    return lambda weights: weights.pop(next(name for name in weights if key in name))


def put(key, value):
    return lambda weights: weights.update({next(name for name in weights if key in name): value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("word_embeddings"), "missing bert.embeddings.word_embeddings.weight"),
        (drop("attn.key.bias"), r"missing bert.encoder.layer.\d.multi_layers.\d.attn.key.bias"),
        (drop("classifier.0.weight"), "no heads"),
        (lambda weights: weights.update({"bert.pooler.more": torch.zeros(2)}), "unexpected bert.pooler.more"),
        (put("layer.1.multi_layers.0.aug_dense.weight", torch.zeros(12, 32)), "share differs"),
        (put("attn.query.weight", torch.full((12, 12), float("nan"))), "NaN"),
        (put("classifier.1.weight", torch.zeros(1, 31)), r"saved \[1, 31\]"),
        (put("classifier.1.bias", {"a": 1}), "more than tensors"),
    ],
)
def test_other_tensors_are_refused(pals, tmp_path, change, message):
    weights = torch.load(pals[0])
    change(weights)
    torch.save(weights, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=message):
        hfadapt.load_bert_n_pals(tmp_path / "model.bin", pals[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": 10**9}, "word_embeddings"),
        ({"hidden_size_aug": 10**9}, "of another checkpoint"),
        ({"hidden_size_aug": 24}, r"saved \[12"),
        ({"num_hidden_layers": 10**9}, "2 in the checkpoint"),
        ({"num_attention_heads": 5}, "cannot be built"),
        ({"pals": False}, "tensors differ"),
        ({"pals": "yes"}, "of another kind"),
        ({"vocab_size": True}, "of another kind"),
        ({"palz": True}, "unknown palz.*pals"),
    ],
)
def test_edited_configs_are_refused(tmp_path, changed, message):
    _, files = files_of("pals", tmp_path, **changed)
    with pytest.raises(CheckpointError, match=message):
        hfadapt.load_bert_n_pals(*files)


def test_what_is_no_file_and_other_tasks_are_refused(pals, tmp_path):
    for files in ((tmp_path, pals[1]), (tmp_path / "none", pals[1]), (pals[0], tmp_path / "none"), (pals[0], pals[0])):
        with pytest.raises(CheckpointError):
            hfadapt.load_bert_n_pals(*files)
    for tasks in (
        "one",
        ["a", "b", "c"],
        ["a", 3],
        [hfadapt.Task("a", hfadapt.Classification(7, pooling="pooler")), "b"],
    ):
        with pytest.raises(CheckpointError):
            hfadapt.load_bert_n_pals(*pals, tasks=tasks)
