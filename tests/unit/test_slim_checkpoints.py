"""A slim checkpoint of an adapted stock model holds every tensor once; Trainer and ``hfadapt.load`` read it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hfadapt
from hfadapt.adapters.save_hooks import _LEFT_OUT
from hfadapt.testing.conformance import randomize
from tests.unit.test_saving import ROWS, adapted, logits, named, trainer


def trained(tmp_path, folder, method, resume=None, **options):
    torch.manual_seed(0)
    model = named(tmp_path)
    hfadapt.attach(model, method, seed=1)
    hfadapt.slim_checkpoints(model)
    trainer(model, tmp_path / folder, max_steps=4, **options).train(resume_from_checkpoint=resume)
    return model


def values(tensors):
    return [t for t in tensors.values() if t.is_floating_point() and t.numel() > 4 and t.count_nonzero()]


@pytest.mark.parametrize("method", ["lora", "pal", "mam"])
def test_every_tensor_stands_in_one_file_once(tmp_path, method):
    model = named(tmp_path)
    hfadapt.attach(model, method)
    hfadapt.slim_checkpoints(model)
    randomize(model)
    model.save_pretrained(tmp_path / "x")
    (file,) = (tmp_path / "x").rglob("*.safetensors")
    held = values(load_file(file))
    same = [(a, b) for a in range(len(held)) for b in range(a) if torch.equal(held[a], held[b])]
    assert file.name == "model.safetensors" and held and not same
    assert torch.equal(logits(hfadapt.load(tmp_path / "x")), logits(model))


@pytest.mark.parametrize("method", ["pal", "mam"])
def test_methods_that_share_parameters_resume_to_the_bit(tmp_path, method):
    whole = trained(tmp_path, "one", method)
    again = trained(tmp_path, "two", method, resume=str(tmp_path / "one" / "checkpoint-2"))
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in whole.state_dict().items())
    assert torch.equal(logits(hfadapt.load(tmp_path / "one" / "checkpoint-4")), logits(whole))


def test_trainer_takes_the_best_model_from_it(tmp_path):
    model = named(tmp_path)
    hfadapt.attach(model, "lora", seed=1)
    hfadapt.slim_checkpoints(model)
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    args = transformers.TrainingArguments(
        str(tmp_path / "best"), per_device_train_batch_size=2, report_to=[], use_cpu=True, save_steps=2, **options
    )
    train = transformers.Trainer(model, args, train_dataset=ROWS, eval_dataset=ROWS)
    train.train()
    best = train.state.best_model_checkpoint
    assert torch.equal(logits(hfadapt.load(best)), logits(model))


def two_files(folder, model):
    """The folder as releases up to 0.2 wrote it: the adapters' file, and the same under the model's names."""
    tensors = load_file(folder / "model.safetensors")
    kept = {k: t for k, t in tensors.items() if not k.startswith("vocabulary.")}
    (folder / "model.safetensors").unlink()
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt", "hfadapt": "1"})
    config = json.loads((folder / "hfadapt_config.json").read_text("utf-8"))
    for digest in ("weights_sha256", "config_sha256"):
        del config[digest]
    (folder / "hfadapt_config.json").write_text(json.dumps(config))
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad and "classifier" not in k}
    own = {k: t.clone() for k, t in model.state_dict().items() if k not in frozen and "position_ids" not in k}
    save_file({**own, _LEFT_OUT: torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_of_both_files_resumes_and_loads_as_before(tmp_path):
    whole = trained(tmp_path, "one", "lora")
    old = tmp_path / "one" / "checkpoint-2"
    at_two = hfadapt.load(old)
    torch.manual_seed(0)
    inner = copy.deepcopy(whole)
    inner.load_state_dict(load_file(old / "model.safetensors"), strict=False)
    two_files(old, inner)
    assert torch.equal(logits(hfadapt.load(old)), logits(at_two))
    again = trained(tmp_path, "two", "lora", resume=str(old))
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in whole.state_dict().items())
    again.save_pretrained(old)  # and the next save leaves one of them
    assert [path.name for path in old.glob("*.safetensors")] == ["model.safetensors"]
    assert torch.equal(logits(hfadapt.load(old)), logits(again))


def test_adapters_that_are_not_here_are_refused_by_a_strict_load(tmp_path):
    model = adapted(named(tmp_path))
    hfadapt.slim_checkpoints(model)
    model.save_pretrained(tmp_path / "x")
    other = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    hfadapt.attach(other, "mam", "a")
    with pytest.raises(RuntimeError, match=r"Unexpected.*hfadapt_shared"):
        other.load_state_dict(load_file(tmp_path / "x" / "model.safetensors"))
    model.load_state_dict(load_file(tmp_path / "x" / "model.safetensors"))
