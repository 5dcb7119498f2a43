"""``hfadapt explain`` shows what a call runs: every slot, in order, with its op, backend and shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import hfadapt as library
from hfadapt.adapters.follow import follow
from hfadapt.errors import AttachError, HFAdaptError
from hfadapt.runtime.attachment import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three tasks, one of which goes through a stack, and two adapters on a stock classifier."""
    folder = tmp_path_factory.mktemp("explain")
    tiny_model("bert", "sequence-classification").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    model = library.MultiTaskModel.from_pretrained(folder / "base", tasks=toy_tasks(), method="low_rank")
    randomize(model.base)
    model.use("score", library.Stack("topic", "score"))
    model.save_pretrained(folder / "tasks")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    library.attach(classifier, "lora", names=["a", "b"])
    randomize(classifier)
    library.save(classifier, folder / "adapters")
    return folder


def explained(hfadapt, *arguments):
    return json.loads(hfadapt("explain", *arguments, "--json").stdout)


@pytest.mark.parametrize("text", [(), ("w1 w2 w3",)], ids=["made up", "a text"])
def test_every_slot_of_a_task_in_the_order_of_the_call(hfadapt, folder, text):
    found = explained(hfadapt, folder / "tasks", *text, "--task", "topic")
    modules = [one["module"] for one in found["slots"]]
    assert modules == sorted(modules) and len(modules) == 2  # a layer each
    assert found["silent"] == []
    for one in found["slots"]:
        assert (one["method"], one["adapters"], one["slot"]) == ("low_rank", ["topic"], "layer_sum")
        assert one["ops"] and one["ops"][0][1] in ("cpu", "reference")
        assert one["shape"][0] == 1 and one["shape"][2] == 32
    if text:
        assert {one["shape"][1] for one in found["slots"]} == {5}  # with [CLS] and [SEP]


def test_the_backend_is_the_one_that_ran(hfadapt, folder, monkeypatch):
    monkeypatch.setenv("HFADAPT_BACKEND", "reference")
    found = explained(hfadapt, folder / "adapters", "--task", "b")
    assert {tuple(op) for one in found["slots"] for op in one["ops"]} == {("grouped_lora", "reference")}
    changes = [one["change"] for one in found["slots"] if one["slot"] != "own copy"]
    assert len(changes) == 4 and all(0 < change < 10 for change in changes)


def test_a_composition_shows_what_each_adapter_of_it_did(hfadapt, folder):
    found = explained(hfadapt, folder / "tasks", "w1", "--task", "score")
    assert [one["adapters"] for one in found["slots"]] == [["topic"], ["score"]] * 2


def test_pairs_tables_and_what_is_refused(hfadapt, folder):
    twice = explained(hfadapt, folder / "tasks", "w1", "--pair", "w2 w3", "--task", "same")
    assert len(twice["slots"]) == 4  # both texts are encoded alone
    shown = hfadapt("explain", folder / "tasks", "--task", "topic").output
    assert "op (backend)" in shown and "topic: 2 slots" in shown
    with pytest.raises(HFAdaptError, match="several tasks.*topic, score, same"):
        hfadapt("explain", folder / "tasks")
    with pytest.raises(HFAdaptError, match="Did you mean 'topic'"):
        hfadapt("explain", folder / "tasks", "--task", "topics")
    assert "--pair goes with" in hfadapt("explain", folder / "tasks", "--pair", "w", "--task", "same", status=2).output


def fused(model):
    library.attach(model, "pfeiffer", names=["a", "b"])
    library.add_fusion(model, library.Fuse("a", "b"))
    return ("a", "b"), library.Fuse("a", "b")


def prefixed(model):
    library.attach(model, "mam", "a")
    return ("a",), "a"


def with_own_head(model):
    library.attach(model, "lora", "a", modules_to_save=["classifier"])
    return ("a",), "a"


@pytest.mark.parametrize(
    ("make", "seen"),
    [(fused, {"fusion"}), (prefixed, {"attention_core"}), (with_own_head, {"own copy"})],
    ids=["fusion", "prefix", "copy"],
)
def test_slots_of_every_kind(make, seen):
    model = tiny_model("bert", "sequence-classification")
    names, choice = make(model)
    randomize(model)
    library.activate(model, choice)
    report = follow(model, lambda: model(**tiny_inputs("bert", "sequence-classification")), names)
    assert seen <= {one.slot for one in report.slots}
    if seen != {"fusion"}:  # which asks deltas for their parts, and runs in their place
        ran = {one.module for one in report.slots}
        assert {path.partition(".hfadapt")[0] for name in names for path, _ in deltas_of(model, name)} <= ran


def test_nothing_stays_behind_and_a_call_past_the_slots_is_an_error():
    model = tiny_model("bert")
    library.attach(model, "lora", "a")
    hooks = [len(one._forward_hooks) for one in model.modules()]
    with pytest.raises(AttachError, match="no slot"), library.active(model, None):
        follow(model, lambda: model(torch.tensor([[5, 6]])), ("a",))
    assert [len(one._forward_hooks) for one in model.modules()] == hooks
    with pytest.raises(AttachError, match="'x'"):
        follow(model, lambda: None, ("x",))
