"""Saved multi-task models: whole, strict, bitwise, and never on a base that was made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import hfadapt
from hfadapt import (
    MultiTaskModel,
    OwnHead,
    Task,
)
from hfadapt.errors import CheckpointError, TaskError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import every_toy_task, toy_batch, toy_model, toy_tasks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    return toy_model()


@pytest.fixture(scope="module")
def named_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(named_base, tmp_path_factory):
    torch.manual_seed(5)
    model = MultiTaskModel.from_pretrained(named_base, tasks=every_toy_task(), method="low_rank")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("saved") / "out"
    model.save_pretrained(folder)
    return model.eval(), folder


def test_reloading_gives_the_same_predictions_to_the_last_bit(saved):
    model, folder = saved
    batch = toy_batch()
    for again in (MultiTaskModel.from_pretrained(folder), hfadapt.load(folder)):
        assert not again.training
        assert [task.to_dict() for task in again.tasks] == [task.to_dict() for task in model.tasks]
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)
        assert {n for n, p in again.named_parameters() if p.requires_grad} == {
            n for n, p in model.named_parameters() if p.requires_grad
        }


def test_saved_folder_holds_no_frozen_base_weight_and_nothing_twice(saved):
    model, folder = saved
    assert {path.name for path in folder.iterdir()} == {"hfadapt_config.json", "config.json", "model.safetensors"}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (folder / "model.safetensors").stat().st_size < 4 * trainable + 40_000


def test_auto_model_gives_the_adapted_model(saved):
    model, folder = saved
    again = transformers.AutoModel.from_pretrained(folder)
    batch = toy_batch()
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def run_python(code, *roots):
    """Run code in a fresh interpreter that finds the packages under ``roots``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_auto_model_gives_the_adapted_model_when_hfadapt_is_imported_first(saved):
    model, folder = saved
    code = f"""
import hfadapt
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({str(folder)!r})
ids = torch.tensor([[2, 5, 9, 3]])
print(type(model).__name__, model(input_ids=ids, task_ids="topic").logits[0, :2].tolist())
"""
    done = run_python(code, ROOT, ROOT / "kernels", ROOT / "plugins")
    assert done.returncode == 0, done.stderr
    want = model(input_ids=torch.tensor([[2, 5, 9, 3]]), task_ids="topic").logits[0, :2].tolist()
    assert done.stdout.strip().splitlines()[-1] == f"MultiTaskModel {want}"


def test_transformers_without_hfadapt_refuses_the_folder(saved):
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({str(saved[1])!r})"
    done = run_python(code)
    assert done.returncode != 0 and "hfadapt" in done.stderr


def test_saving_does_not_say_that_it_uploads(tmp_path):
    with pytest.raises(CheckpointError, match=r"try: model.push_to_hub\(repo_id\)"):
        toy_model(toy_tasks()).save_pretrained(tmp_path / "new", push_to_hub=True)
    assert not (tmp_path / "new").exists()


def test_a_base_without_a_name_is_asked_for_and_never_made_up(tmp_path):
    model = toy_model(toy_tasks())
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"the base has no name.*try: .*base="):
        MultiTaskModel.from_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path, base=tiny_model("bert"))
    batch = toy_batch(toy_tasks())
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
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "config":
        (folder / "hfadapt_config.json").write_text("{")
    elif damage == "no adapter config":
        (folder / "hfadapt_config.json").unlink()
    else:
        tensors = load_file(weights)
        tensors["heads.nobody.out_proj.weight"] = tensors.pop("heads.topic.out_proj.weight")
        save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"hfadapt_config.json|model.safetensors"):
        MultiTaskModel.from_pretrained(folder)


def test_tasks_for_a_saved_folder_and_no_tasks_for_a_base_are_refused(saved, named_base):
    with pytest.raises(TaskError, match="knows its own tasks"):
        MultiTaskModel.from_pretrained(saved[1], tasks=toy_tasks())
    with pytest.raises(TaskError, match="no tasks"):
        MultiTaskModel.from_pretrained(named_base)


@pytest.mark.parametrize("method", ["low_rank", None])
def test_a_trained_base_is_saved_and_needs_no_original(tmp_path, method):
    model = toy_model(toy_tasks(), method=method, train_base=True)
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    batch = toy_batch(toy_tasks())
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_shared_parameters_are_saved_once_and_reload_tied(named_base, tmp_path):
    torch.manual_seed(2)
    model = MultiTaskModel.from_pretrained(named_base, tasks=toy_tasks(), method="pal").eval()
    model.save_pretrained(tmp_path)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * trainable + 40_000
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    batch = toy_batch(toy_tasks())
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_a_full_disk_leaves_the_folder_as_it_was(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hfadapt.adapters.files.save_file", full)
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
    assert list(json.loads((tmp_path / "hfadapt_config.json").read_text())["adapters"]) == []
    batch = toy_batch(toy_tasks())
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
    batch = toy_batch(chosen)
    again = MultiTaskModel.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)
