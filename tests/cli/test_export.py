"""``hfadapt export`` writes what other libraries and stock transformers read, and says what it leaves behind."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel

import hfadapt as library
from hfadapt.errors import HFAdaptError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import toy_tasks

HEAD = "sequence-classification"
INPUTS = tiny_inputs("bert", HEAD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and two LoRAs with heads and a bottleneck on it."""
    folder = tmp_path_factory.mktemp("export")
    tiny_model("bert", HEAD).save_pretrained(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    for name, method in (("a", library.LoRA(2)), ("b", library.LoRA(3, 5.0)), ("c", "seq_bn")):
        library.attach(model, method, name, verify=False)
    randomize(model)
    for names in ("a", ["a", "b"], "c"):
        library.save(model, folder / "".join(names), names)
    with torch.no_grad():
        wanted = {name: model(**INPUTS, task_ids=name).logits for name in "abc"}
    return folder, wanted


def logits(model):
    with torch.no_grad():
        return model.eval()(**INPUTS).logits


def test_peft_reads_what_is_written(folder, tmp_path, hfadapt):
    home, wanted = folder
    assert "b is in" in hfadapt("export", home / "ab", tmp_path / "b", "--format", "peft", "--adapter", "b").output
    base = AutoModelForSequenceClassification.from_pretrained(home / "base")
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(base, tmp_path / "b")), wanted["b"])


def test_what_is_written_for_adapterhub_is_read_again(folder, tmp_path, hfadapt):
    home, wanted = folder
    hfadapt("export", home / "c", tmp_path / "c", "--format", "adapterhub")
    base = AutoModelForSequenceClassification.from_pretrained(home / "base")
    torch.testing.assert_close(logits(library.load(tmp_path / "c", base)), wanted["c"])


@pytest.mark.parametrize("moved", [False, True])
def test_a_merged_model_is_a_stock_one(folder, tmp_path, hfadapt, moved):
    home, wanted = folder
    base = ("--base", home / "base") if moved else ()
    hfadapt("export", home / "ab", tmp_path / "a", "--format", "merged", "--adapter", "a", *base)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(logits(model), wanted["a"])
    assert not any("hfadapt" in name for name in model.state_dict()) and not (tmp_path / "a" / "hfadapt").exists()


def test_a_folder_of_peft_is_merged_too(folder, tmp_path, hfadapt):
    home, wanted = folder
    hfadapt("export", home / "a", tmp_path / "a", "--format", "peft")
    hfadapt("export", tmp_path / "a", tmp_path / "merged", "--format", "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(model), wanted["a"])


def test_of_a_task_the_head_stays_behind_and_that_is_said(tmp_path, hfadapt):
    tiny_model("bert").save_pretrained(tmp_path / "base")
    many = library.MultiTaskModel.from_pretrained(tmp_path / "base", tasks=toy_tasks(), method="lora").eval()
    randomize(many)
    many.save_pretrained(tmp_path / "many")
    shown = hfadapt("export", tmp_path / "many", tmp_path / "out", "--format", "merged", "--adapter", "topic")
    assert "the head of the task topic" in shown.output
    plain, inputs = BertModel.from_pretrained(tmp_path / "out").eval(), tiny_inputs("bert")
    with torch.no_grad():
        want = many.base(**inputs, task_ids="topic")[0]
        torch.testing.assert_close(plain(**inputs)[0], want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ab", "x", "--format", "peft"), "several adapters.*a, b"),
        (("ab", "x", "--format", "peft", "--adapter", "z"), "no adapter 'z'"),
        (("ab", "x", "--format", "onyx", "--adapter", "a"), "onyx"),
        (("c", "x", "--format", "merged"), "merged"),
        (("c", "x", "--format", "peft"), "."),
        (("a", "base", "--format", "merged"), "a folder of its own"),
        (("a", "base", "--format", "peft"), "."),
        (("none", "x", "--format", "peft"), "none"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_there(folder, hfadapt, arguments, message):
    home, _ = folder
    source, target, *options = arguments
    before = sorted(path.name for path in home.rglob("*"))
    with pytest.raises(HFAdaptError, match=message):
        hfadapt("export", home / source, home / target, *options)
    assert sorted(path.name for path in home.rglob("*")) == before
