"""Saved folders under their names on the hub, here in its cache; and data frames as a task's data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants

import hfadapt
from hfadapt import Classification, MultiTaskModel, Task
from hfadapt.adapters.files import CONFIG_FILE, OLD_CONFIG_FILE, WEIGHTS_FILE
from hfadapt.data.sources import load_splits
from hfadapt.errors import CheckpointError, ConfigError, DataError, TaskError
from hfadapt.inference.predict import Predictor
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks


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


@pytest.fixture
def adapted(tmp_path: Path):
    """A classifier on a base that is saved, with a LoRA."""
    tiny_model("bert", "sequence-classification", seed=0).save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    hfadapt.attach(model, "lora", "a")
    randomize(model)
    return model.eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(**tiny_inputs("bert")).logits


def test_auto_classes_give_the_adapted_model_by_its_name_on_the_hub(tmp_path: Path, push, adapted) -> None:
    hfadapt.save(adapted, tmp_path / "saved")
    push(tmp_path / "saved", "me/lora")
    for auto in (transformers.AutoModelForSequenceClassification, transformers.AutoModel):
        again = auto.from_pretrained("me/lora")
        assert isinstance(again, transformers.BertForSequenceClassification)
        assert torch.equal(logits(again), logits(adapted))
    assert transformers.AutoModel.from_pretrained("me/lora", dtype=torch.float64).dtype == torch.float64
    with pytest.raises(CheckpointError, match=r"another kind of model than AutoModelForCausalLM.*BertForSequence"):
        transformers.AutoModelForCausalLM.from_pretrained("me/lora")
    with pytest.raises(CheckpointError, match=r"config alone makes no model"):
        transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained("me/lora"))


def test_a_revision_is_that_of_the_adapters(tmp_path: Path, push, adapted) -> None:
    wanted = []
    for revision, commit in (("first", "1" * 40), ("main", "0" * 40)):
        randomize(adapted, seed=len(wanted))
        wanted.append(logits(adapted))
        hfadapt.save(adapted, tmp_path / revision)
        push(tmp_path / revision, "me/lora", revision, commit)
    for revision, logit in zip(("first", "main"), wanted, strict=True):
        again = transformers.AutoModelForSequenceClassification.from_pretrained("me/lora", revision=revision)
        assert torch.equal(logits(again), logit)


def test_tasks_are_given_by_auto_model_and_by_no_class_of_another_kind(tmp_path: Path, push) -> None:
    tiny_model("bert", seed=0).save_pretrained(tmp_path / "base")
    model = MultiTaskModel.from_pretrained(tmp_path / "base", tasks=Task("a", Classification(2)), method="lora")
    randomize(model.base)
    model.save_pretrained(tmp_path / "saved")
    push(tmp_path / "saved", "me/tasks")
    again = transformers.AutoModel.from_pretrained("me/tasks")
    assert isinstance(again, MultiTaskModel) and torch.equal(logits(again), logits(model))
    with pytest.raises(CheckpointError, match=r"another kind of model than AutoModelForCausalLM.*MultiTaskModel"):
        transformers.AutoModelForCausalLM.from_pretrained("me/tasks")


def test_a_whole_checkpoint_is_the_stock_model_and_says_what_is_left_out(tmp_path: Path, push, adapted) -> None:
    adapted.save_pretrained(tmp_path / "saved")
    push(tmp_path / "saved", "me/whole")
    stock, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        "me/whole", output_loading_info=True
    )
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(stock), logits(base)) and not torch.equal(logits(stock), logits(adapted))
    assert any("hfadapt_load" in key for key in report["unexpected_keys"])
    assert torch.equal(logits(hfadapt.load("me/whole")), logits(adapted))


def test_folders_of_older_releases_are_read_by_name_and_renewed_by_a_save(tmp_path: Path, push, adapted) -> None:
    old = tmp_path / "saved"
    hfadapt.save(adapted, old)
    (old / CONFIG_FILE).rename(old / OLD_CONFIG_FILE)
    push(old, "me/old")
    base = tiny_model("bert", "sequence-classification", seed=0)
    assert torch.equal(logits(hfadapt.load("me/old", base)), logits(adapted))
    hfadapt.save(adapted, old)
    assert {path.name for path in old.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, "config.json"}


@pytest.mark.parametrize("whose", ["ours", "peft's"])
def test_two_descriptions_in_one_folder_are_refused(tmp_path: Path, adapted, whose: str) -> None:
    folder = tmp_path / "saved"
    hfadapt.save(adapted, folder)
    other = (folder / CONFIG_FILE).read_text() if whose == "ours" else '{"peft_type": "LORA"}'
    (folder / OLD_CONFIG_FILE).write_text(other)
    for read in (hfadapt.load, MultiTaskModel.from_pretrained, hfadapt.Engine.from_pretrained):
        with pytest.raises(CheckpointError, match=r"two adapters[\s\S]*hfadapt_config.json, and adapter_config.json"):
            read(folder)
    if whose == "peft's":
        with pytest.raises(CheckpointError, match="that hfadapt did not write"):
            hfadapt.save(adapted, folder)
    assert (folder / OLD_CONFIG_FILE).read_text() == other


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


@pytest.mark.parametrize("read", [MultiTaskModel.from_pretrained, Predictor.from_folder])
def test_a_misspelt_folder_is_told_from_a_base_and_the_right_one_named(tmp_path: Path, read) -> None:
    toy_model(toy_tasks(), hfadapt.LoRA(r=2)).save_pretrained(tmp_path / "reviews")
    with pytest.raises(TaskError, match=r"no folder of that name; .*try: Did you mean 'reviews'"):
        read(tmp_path / "revews")
