"""Loads are all or nothing: damaged and changed folders are refused with our errors, and the model stays as it was.

``-m thorough`` tries hundreds of mutations of each kind of folder in place of a few.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

import hfadapt
from hfadapt import plugins
from hfadapt.adapters.files import TRAINER_FILE, WEIGHTS_FILE, config_path
from hfadapt.errors import CheckpointError, HFAdaptError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks
from tests.unit.releases import older

KINDS = ("load", "multi_task", "peft")


def base(kind="load"):
    torch.manual_seed(0)
    return tiny_model("bert", None if kind == "multi_task" else "sequence-classification").eval()


def write(kind, folder):
    if kind == "multi_task":
        toy_model(toy_tasks(), hfadapt.LoRA(r=2)).save_pretrained(folder)
        return
    model = base()
    method = hfadapt.LoRA(r=2, lora_alpha=16) if kind == "peft" else (hfadapt.LoRA(r=2), hfadapt.PrefixConfig())
    hfadapt.attach(model, method)
    if kind == "peft":
        pytest.importorskip("peft")
        hfadapt.save_peft(model, folder)
    else:
        hfadapt.save(model, folder)


def read(kind, folder, model):
    if kind == "multi_task":
        return hfadapt.MultiTaskModel.from_pretrained(folder, base=model)
    return (hfadapt.load if kind == "load" else hfadapt.load_peft)(
        *((folder, model) if kind == "load" else (model, folder))
    )


def all_of(model):
    hooks = [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()]
    state = hfadapt.attachment(model) if "_hfadapt" in vars(model) else None
    names = None if state is None else (state.names, state.active, dict(state.compositions))
    trains = {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters()}
    return hooks, names, trains, model.config._attn_implementation


def refused(kind, folder, match="", model=None):
    """Check that a load is refused with an error of ours, and that nothing of the model changed."""
    model = base(kind) if model is None else model
    before, values = all_of(model), {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(HFAdaptError, match=match):
        read(kind, folder, model)
    assert all_of(model) == before
    after = model.state_dict()
    assert after.keys() == values.keys()
    assert all(torch.equal(after[key], values[key]) for key in values)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    for kind in KINDS:
        write(kind, root / kind)
    return root


@pytest.fixture
def folder(saved, tmp_path):
    def copied(kind):
        shutil.copytree(saved / kind, tmp_path / kind, dirs_exist_ok=True)
        return tmp_path / kind

    return copied


def edit(folder, change):
    path = config_path(folder)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def weights_in(folder):
    """A model of several tasks has its weights in the file from which Trainer resumes, and there alone."""
    return next(path for name in (WEIGHTS_FILE, TRAINER_FILE) if (path := folder / name).exists())


def edit_tensors(folder, change):
    tensors = load_file(weights_in(folder))
    key = next(key for key in tensors if "lora" in key)
    tensors[key] = change(tensors[key])
    save_file(tensors, weights_in(folder))
    edit(folder, lambda data: [data.pop(key, None) for key in ("weights_sha256", "config_sha256")])


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_and_one_without_digests_as_well(kind, folder):
    place = folder(kind)
    read(kind, place, base(kind))
    edit_tensors(place, lambda tensor: tensor)
    read(kind, place, base(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_of_millions_is_refused_before_it_is_allocated(kind, folder):
    def change(data):
        data.pop("config_sha256", None)
        configs = [c for cs in data["adapters"].values() for c in cs] if kind != "peft" else [data]
        configs[0]["r"] = 40_000_000

    place = folder(kind)
    edit(place, change)
    tracemalloc.start()
    refused(kind, place)
    assert tracemalloc.get_traced_memory()[1] < 1 << 28
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["load", "multi_task"])
def test_a_changed_scale_is_refused(kind, folder):
    place = folder(kind)
    edit(place, lambda data: next(iter(data["adapters"].values()))[0].update(lora_alpha=96))
    refused(kind, place, "is not the file that was saved")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.index_fill(0, torch.tensor([0]), float("nan")),
        lambda t: t.index_fill(0, torch.tensor([0]), float("inf")),
        lambda t: t.to(torch.int32),
        lambda t: t > 0,
        lambda t: t.to(torch.complex64),
        lambda t: t.double() + 1e300,
        lambda t: t.sum(),
    ],
    ids=["nan", "inf", "whole", "truth", "complex", "too large", "0-d"],
)
def test_weights_that_are_no_finite_numbers_are_refused_without_a_digest(kind, change, folder):
    place = folder(kind)
    if older("safetensors", "0.7") and change(torch.ones(2, 2)).is_complex():
        pytest.skip("safetensors before 0.7 writes no complex numbers")
    edit_tensors(place, change)
    refused(kind, place)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("find", [config_path, weights_in])
def test_a_named_pipe_is_no_file(kind, find, folder):
    place = folder(kind)
    path = find(place)
    path.unlink()
    os.mkfifo(path)
    refused(kind, place)


@pytest.mark.parametrize("name", ["BertConfig", "__name__", "pipeline", "os.path", "AutoModel"])
@pytest.mark.parametrize("kind", ["load", "multi_task"])
def test_a_class_that_is_no_model_is_refused(kind, name, folder):
    place = folder(kind)
    edit(place, lambda data: data.update(model_class=name, base_model_name_or_path="somewhere"))
    with pytest.raises(CheckpointError, match="no model of transformers"):
        hfadapt.load(place)


VALUES = (None, True, 0, -1, 10**9, 1e308, float("nan"), "", "x", [], {}, [[]], {"a": 1}, [None], "lora" * 100)


def places(data, path=()):
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def mutate(folder, stream):
    """Change one thing of a folder; return what."""
    path = config_path(folder)
    kind = stream.choice(["value"] * 6 + ["drop"] * 2 + ["deep", "digits", "cut", "bits"])
    if kind in ("cut", "bits"):
        path = stream.choice([path, weights_in(folder)])
        raw = bytearray(path.read_bytes())
        at = stream.randrange(min(len(raw), 4000))
        raw[at:] = [*raw[at : at + 1], *raw[at + 1 :]] if kind == "bits" else []
        if kind == "bits":
            raw[at] ^= 1 << stream.randrange(8)
        path.write_bytes(raw)
        return f"{kind} of {path.name} at {at}"
    data = json.loads(path.read_text())
    where = stream.choice([found for found in places(data) if found])
    parent = data
    for key in where[:-1]:
        parent = parent[key]
    if kind == "drop":
        del parent[where[-1]]
        path.write_text(json.dumps(data))
        return f"no {where}"
    value = stream.choice(VALUES) if kind == "value" else "MARK"
    parent[where[-1]] = value
    big = "[" * 100_000 + "]" * 100_000 if kind == "deep" else "9" * 5000
    if stream.random() < 0.7:
        data.pop("config_sha256", None)
    path.write_text(json.dumps(data).replace('"MARK"', big))
    return f"{where}: {kind} {value!r}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.thorough)])
def test_mutated_folders_load_or_are_refused_and_leave_the_model_alone(kind, count, saved, tmp_path):
    for seed in range(count):
        place = tmp_path / str(seed)
        shutil.copytree(saved / kind, place)
        what = mutate(place, random.Random(f"{kind} {seed}"))
        model = base(kind)
        before, values = all_of(model), {key: value.clone() for key, value in model.state_dict().items()}
        try:
            read(kind, place, model)
        except HFAdaptError:
            assert all_of(model) == before, what
            assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items()), what
        except Exception as error:
            raise AssertionError(f"seed {seed}, {what}: {type(error).__name__}: {error}") from error
        shutil.rmtree(place)


@pytest.mark.parametrize("first", [False, True], ids=["bare", "adapted"])
def test_an_interrupted_load_is_undone(first, folder, monkeypatch):
    from hfadapt.adapters import load as checkpoint

    model = base()
    if first:
        hfadapt.attach(model, "low_rank", "mine")
        model.bert.encoder.requires_grad_(True)
    before = all_of(model)
    keys = set(model.state_dict())

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hfadapt.load(folder("load"), model)
    assert all_of(model) == before
    assert set(model.state_dict()) == keys
    monkeypatch.undo()
    hfadapt.load(folder("load"), model)


def test_a_model_that_no_table_maps_loads_what_it_saved(tmp_path):
    from transformers import DebertaConfig, DebertaModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = DebertaModel(DebertaConfig(vocab_size=50, max_position_embeddings=16, **sizes))
    assert "deberta" not in plugins.architectures()
    fresh = copy.deepcopy(model)
    hfadapt.attach(model, "pfeiffer")
    again = hfadapt.load(hfadapt.save(model, tmp_path / "own"), fresh)
    assert hfadapt.attachment(again).arch.source == "probe"
    for key, parameter in hfadapt.parameters_of(model, "default").items():
        assert torch.equal(again.get_parameter(key), parameter)
