"""Saved adapters: whole or not at all, strict when read, and never on another base."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hfadapt
from hfadapt.adapters import files as adapter_files
from hfadapt.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from hfadapt.errors import CheckpointError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

INPUTS = tiny_inputs("bert", padding="right")


@pytest.fixture
def folder(tmp_path):
    model = tiny_model("bert", "sequence-classification")
    hfadapt.attach(model, "low_rank", names=["a", "b"])
    randomize(model)
    hfadapt.save(model, tmp_path / "saved")
    return tmp_path / "saved"


def base():
    return tiny_model("bert", "sequence-classification", seed=0)


def edit_config(folder, **changes):
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    edit_config(folder, weights_sha256=None)


@torch.no_grad()
def test_round_trip_is_bitwise_with_the_head(tmp_path):
    model = base()
    hfadapt.attach(model, "low_rank", names=["a", "b"])
    randomize(model)
    model.classifier.weight.normal_()
    hfadapt.save(model, tmp_path / "x")
    again = hfadapt.load(tmp_path / "x", base())
    assert torch.equal(again(**INPUTS, task_ids="b")[0], model(**INPUTS, task_ids="b")[0])
    assert hfadapt.attachment(again).head_paths == ("classifier",)


@torch.no_grad()
def test_adapters_move_between_head_and_headless_models(folder):
    bare = tiny_model("bert")
    hfadapt.load(folder, bare)
    assert hfadapt.attachment(bare).names == ("a", "b")


def test_files_hold_only_adapters_and_head(folder):
    # config.json only says whose folder this is, for AutoModel
    assert {p.name for p in folder.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, "config.json"}
    assert all("hfadapt" in k or k.startswith("head.classifier.") for k in load_file(folder / WEIGHTS_FILE))


def test_compositions_and_the_active_adapter_come_back(tmp_path):
    model = base()
    hfadapt.attach(model, "low_rank", names=["a", "b"])
    hfadapt.compose(model, "both", hfadapt.Stack("a", "b"))
    hfadapt.activate(model, "b")
    hfadapt.save(model, tmp_path / "x")
    state = hfadapt.attachment(hfadapt.load(tmp_path / "x", base()))
    assert state.compositions == {"both": hfadapt.Stack("a", "b")} and state.active == "b"


def test_one_of_several_adapters_can_be_saved(tmp_path, folder):
    model = hfadapt.load(folder, base())
    hfadapt.save(model, tmp_path / "only", names=["b"])
    assert hfadapt.attachment(hfadapt.load(tmp_path / "only", base())).names == ("b",)


def test_loading_a_second_folder_keeps_the_first(folder, tmp_path):
    model = hfadapt.load(folder, base())
    other = base()
    hfadapt.attach(other, "lora", "c")
    hfadapt.save(other, tmp_path / "c")
    hfadapt.load(tmp_path / "c", model)
    assert hfadapt.attachment(model).names == ("a", "b", "c")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: (f / CONFIG_FILE).unlink(), f"no {CONFIG_FILE}"),
        (lambda f: (f / WEIGHTS_FILE).unlink(), f"no {WEIGHTS_FILE}"),
        (lambda f: (f / CONFIG_FILE).write_text('{"format": "hf'), "cannot be read"),
        (lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-40]), "is damaged"),
        (lambda f: (f / WEIGHTS_FILE).write_bytes(b"not tensors"), "is damaged"),
        (lambda f: edit_config(f, format="other"), "not an hfadapt folder"),
        (lambda f: edit_config(f, format_version=99), "newer hfadapt.*format version 99; allowed: up to 2"),
        (lambda f: edit_config(f, base_config_hash="0" * 16), "belong to another base"),
        (lambda f: edit_tensors(f, lambda t: t.pop(sorted(t)[0])), "1 tensors differ.*missing"),
        (lambda f: edit_tensors(f, lambda t: t.update(stray=torch.zeros(1))), "unexpected stray"),
        (lambda f: edit_tensors(f, lambda t: t.update({sorted(t)[0]: torch.zeros(1)})), r"saved \[1\], here"),
        (lambda f: edit_config(f, adapters={"a": [{"method": "nonsense"}]}), "unknown method 'nonsense'"),
    ],
)
def test_damaged_folder_is_refused_and_the_base_stays_clean(folder, damage, message):
    damage(folder)
    model = base()
    with pytest.raises(hfadapt.HFAdaptError, match=message):
        hfadapt.load(folder, model)
    assert "_hfadapt" not in model.__dict__ and not any("hfadapt" in k for k in model.state_dict())


def test_a_whole_model_is_no_adapter_folder_and_the_error_says_how_to_go_on(tmp_path):
    model = base()
    hfadapt.attach(model, "lora")
    model.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "hfadapt")  # as earlier versions wrote it
    with pytest.raises(CheckpointError, match=r"no hfadapt_config.json.*try: .*resume_from_checkpoint"):
        hfadapt.load(tmp_path, base())


def test_adapter_of_another_architecture_is_refused(folder):
    with pytest.raises(CheckpointError, match=r"another base.*roberta.*allowed:.*bert"):
        hfadapt.load(folder, tiny_model("roberta"))


def test_names_that_are_taken_are_refused(folder):
    model = hfadapt.load(folder, base())
    with pytest.raises(CheckpointError, match=r"attached already; got: \['a', 'b'\]"):
        hfadapt.load(folder, model)
    assert hfadapt.attachment(model).names == ("a", "b")


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_while_saving_leaves_nothing_half_written(folder, tmp_path, monkeypatch, existing):
    target = folder if existing else tmp_path / "new"
    before = {p.name: p.read_bytes() for p in target.iterdir()} if existing else None

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter_files, "save_file", full)
    with pytest.raises(CheckpointError, match="nothing was changed.*No space left"):
        hfadapt.save(hfadapt.load(folder, base()), target)
    if existing:
        assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    else:
        assert not target.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_disk_that_is_really_full_leaves_nothing_half_written(folder, tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")
    model = hfadapt.load(folder, base())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        with pytest.raises(CheckpointError, match="nothing was changed"):
            hfadapt.save(model, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_one_changed_bit_of_the_weights_is_noticed(folder):
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not the file that was saved[\s\S]*weights_sha256"):
        hfadapt.load(folder, base())


def test_saving_over_a_file_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file; allowed: a folder"):
        hfadapt.save(hfadapt.load(folder, base()), tmp_path / "file")


def test_other_files_of_an_existing_folder_are_kept(folder):
    (folder / "notes.txt").write_text("mine")
    hfadapt.save(hfadapt.load(folder, base()), folder)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
def test_auto_model_refuses_a_folder_of_adapters_and_names_the_way(folder, auto):
    with pytest.raises(CheckpointError, match=r"adapters but no tasks[\s\S]*hfadapt.load"):
        getattr(transformers, auto).from_pretrained(folder)
