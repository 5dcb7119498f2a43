"""Saved folders under their names on the hub, here in its cache; and data frames as a task's data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import hfadapt
from hfadapt import Classification, MultiTaskModel, Task
from hfadapt.data.sources import load_splits
from hfadapt.errors import CheckpointError, ConfigError, DataError, TaskError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model


@pytest.fixture
def push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a folder into the cache as a repository that was pushed there."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def push(folder: Path, name: str, revision: str = "main", commit: str = "0" * 40) -> None:
        place = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)

    return push


def test_adapters_are_loaded_by_their_name_on_the_hub(tmp_path: Path, push) -> None:
    model = tiny_model("bert", "sequence-classification", seed=0)
    hfadapt.attach(model, "lora", "a")
    randomize(model)
    hfadapt.save(model, tmp_path / "saved")
    push(tmp_path / "saved", "me/lora")
    again = hfadapt.load("me/lora", tiny_model("bert", "sequence-classification", seed=0))
    inputs = tiny_inputs("bert")
    assert torch.equal(again.eval()(**inputs).logits, model.eval()(**inputs).logits)


def test_a_model_of_many_tasks_is_loaded_by_its_name_on_the_hub(tmp_path: Path, push) -> None:
    tiny_model("bert", seed=0).save_pretrained(tmp_path / "base")
    tasks = [Task("a", Classification(2)), Task("b", Classification(3))]
    model = MultiTaskModel.from_pretrained(tmp_path / "base", tasks=tasks, method="lora")
    randomize(model.base)
    model.save_pretrained(tmp_path / "saved")
    push(tmp_path / "saved", "me/many")
    inputs = tiny_inputs("bert", batch=2)
    wanted = model.eval()(**inputs, task_ids=["a", "b"]).logits
    for options in ({}, {"base": str(tmp_path / "base")}):
        again = MultiTaskModel.from_pretrained("me/many", **options)
        assert again.tasks == model.tasks
        assert torch.equal(again(**inputs, task_ids=["a", "b"]).logits, wanted)
    assert isinstance(hfadapt.load("me/many"), MultiTaskModel)


def test_a_revision_is_the_one_that_is_read(tmp_path: Path, push) -> None:
    tiny_model("bert", seed=0).save_pretrained(tmp_path / "base")
    model = MultiTaskModel.from_pretrained(tmp_path / "base", tasks=[Task("a", Classification(2))], method="lora")
    inputs, wanted = tiny_inputs("bert", batch=2), {}
    for revision, commit in (("main", "0" * 40), ("old", "1" * 40)):
        randomize(model.base, seed=len(wanted))
        model.save_pretrained(tmp_path / revision)
        push(tmp_path / revision, "me/many", revision, commit)
        wanted[revision] = model.eval()(**inputs, task_ids="a").logits
    assert not torch.equal(wanted["main"], wanted["old"])
    for load in (MultiTaskModel.from_pretrained, hfadapt.load):
        for options, revision in (({}, "main"), ({"revision": "old"}, "old"), ({"revision": "1" * 40}, "old")):
            assert torch.equal(load("me/many", **options)(**inputs, task_ids="a").logits, wanted[revision])
        with pytest.raises((CheckpointError, TaskError)):
            load("me/many", revision="new")
    with pytest.raises(ConfigError, match="no revisions"):
        hfadapt.load(tmp_path / "old", revision="old")
    for bad in ({"revision": 3}, {"token": 3}, {"revision": ""}):
        with pytest.raises(ConfigError):
            hfadapt.load("me/many", **bad)


def test_revision_and_token_are_handed_to_the_hub(push, monkeypatch, tmp_path: Path) -> None:
    asked = []

    def fetch(name, *_, **options):
        asked.append((name, options["revision"], options["token"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(CheckpointError):
        hfadapt.load("me/lora", tiny_model("bert"), revision="v1", token="hf_mine")
    with pytest.raises(TaskError):
        MultiTaskModel.from_pretrained("me/lora", revision="v1", token="hf_mine")
    assert asked == [("me/lora", "v1", "hf_mine")] * 4


def test_a_name_that_is_nowhere_is_refused(push) -> None:
    with pytest.raises(CheckpointError, match="nor name on the hub"):
        hfadapt.load("me/nothing", tiny_model("bert"))
    with pytest.raises(TaskError, match="or its name on the hub"):
        MultiTaskModel.from_pretrained("me/nothing")


def test_a_hub_or_disk_that_fails_is_not_taken_for_a_name_that_is_nowhere(push, monkeypatch) -> None:
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(CheckpointError, match=r"me/lora: the hub does not give out.*No space left"):
        hfadapt.load("me/lora", tiny_model("bert"))


def test_a_base_on_the_hub_is_no_saved_folder(tmp_path: Path, push) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "base")
    push(tmp_path / "base", "me/base")
    with pytest.raises(TaskError, match="no tasks for this base"):
        MultiTaskModel.from_pretrained("me/base")
    model = MultiTaskModel.from_pretrained("me/base", tasks=Task("t", Classification(2)), method="lora")
    assert model.config.base_model_name_or_path == "me/base"


def test_a_data_frame_is_a_tasks_data() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b"], "label": [0, 1]}, index=[7, 9])
    for data in (frame, {"train": frame, "validation": frame[:1]}):
        rows = load_splits(Task("t", data=data))["train"]
        assert rows.column_names == ["text", "label"] and rows["label"][:] == [0, 1]
    with pytest.raises(DataError, match="the task is empty"):
        load_splits(Task("t", data=frame[:0]))
