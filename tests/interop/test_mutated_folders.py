"""Folders that were damaged at random: an error of ours or a whole load, quickly, and never a part of one.

63 of each kind run with the other tests, more than 500 in all, 1,250 with ``-m thorough``, more than 10,000; the seeds
are fixed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

import hfadapt
from hfadapt.testing.conformance import randomize

SAVED = Path(__file__).resolve().parents[1] / "golden" / "data" / "adapterhub" / "saved"
SECONDS = 120  # of one load: a hang, however busy the machine
ODD = [None, True, False, -1, 0, 3, 1e308, float("nan"), 2**40, -0.5, "", "x", "../x", [], {}, [1], {"a": 1}, "[" * 50]
SOURCES = ("own", "shared", "peft", "peft_prefix", "seq_bn", "lora", "mtl_lora", "seq_bn_inv", "mam", "setup", "fusion")
OWN = ("own", "shared")
PICKLED = ("mam",)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """One whole folder of each kind."""
    root = tmp_path_factory.mktemp("whole")
    model = base()
    hfadapt.attach(model, (hfadapt.LoRA(2), "pfeiffer"), "x")
    randomize(model)
    hfadapt.save(model, root / "own")
    model = base()
    hfadapt.attach(model, hfadapt.MTLLoRA(r=2, n_up=2), names=["x", "y"])
    randomize(model)
    hfadapt.save(model, root / "shared")
    model = base()
    hfadapt.attach(model, hfadapt.LoRA(2), "x")
    randomize(model)
    hfadapt.export(model, root / "peft", format="peft")
    shutil.copytree(SAVED.parents[1] / "peft" / "saved" / "prefix_tuning", root / "peft_prefix")
    for name in ("seq_bn", "lora", "mtl_lora", "seq_bn_inv", "mam"):
        shutil.copytree(SAVED / name / "x", root / name)
    for name in "abc":
        shutil.copytree(SAVED / "stack3" / name, root / "setup" / name)
    parts = [{"type": "single", "children": [name]} for name in "abc"]
    (root / "setup" / "adapter_setup.json").write_text(
        json.dumps({"adapter_setup": {"type": "Stack", "children": parts}})
    )
    shutil.copytree(SAVED / "fusion3_static" / "fusion", root / "fusion")
    return {name: root / name for name in SOURCES}


def base() -> BertModel:
    return BertModel.from_pretrained(SAVED / "base").eval()


def change_json(path: Path, draw: random.Random) -> None:
    text = path.read_text()
    how = draw.choice(("value", "value", "value", "drop", "add", "cut", "byte", "deep", "other"))
    if how in ("value", "drop", "add"):
        data = json.loads(text)
        inside = [data]
        for one in inside:
            inside += [v for v in (one.values() if isinstance(one, dict) else one) if isinstance(v, (dict, list)) and v]
        where = draw.choice([one for one in inside if one])
        key = draw.choice(sorted(where)) if isinstance(where, dict) else draw.randrange(len(where))
        if how == "drop":
            del where[key]
        elif how == "add" and isinstance(where, dict):
            where[draw.choice(("spam", "r", "config", "peft_type", "format"))] = draw.choice(ODD)
        else:
            where[key] = draw.choice(ODD)
        text = json.dumps(data)
    elif how == "cut":
        text = text[: draw.randrange(len(text))]
    elif how == "byte":
        place = draw.randrange(len(text))
        text = text[:place] + chr(draw.randrange(256)) + text[place + 1 :]
    else:
        text = "[" * 100_000 if how == "deep" else draw.choice(("", "[]", "3", '"x"', "{}", "null", "7" * 5000))
    path.write_text(text)


def change_weights(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    how = draw.choice(("cut", "byte", "header", "tensor", "tensor", "tensor"))
    if how == "tensor" and path.suffix == ".safetensors":
        tensors = load_file(str(path))
        key = draw.choice(sorted(tensors))
        tensor = tensors.pop(key)
        odd = draw.choice(("drop", "name", "shape", "kind", "nan", "more", "wide"))
        if odd == "name":
            tensors[key[:-1] + "x"] = tensor
        elif odd == "shape":
            tensors[key] = tensor.flatten()[: max(1, tensor.numel() - 1)].clone()
        elif odd == "kind":
            tensors[key] = tensor.to(draw.choice((torch.int64, torch.bool, torch.float16, torch.complex64)))
        elif odd == "nan":
            tensors[key] = tensor * draw.choice((float("nan"), float("inf")))
        elif odd == "more":
            tensors |= {key: tensor, "spam": tensor.clone()}
        elif odd == "wide":
            tensors[key] = torch.cat([tensor, tensor])
        save_file(tensors, str(path))
        return
    if how == "cut":
        content = content[: draw.randrange(len(content))]
    elif how == "header":
        content[:8] = draw.choice((10 * 2**30, 2**63, 0, 7)).to_bytes(8, "little")
    else:
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)


def mutate(folder: Path, draw: random.Random) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors", ".bin"))
    path = draw.choice(files)
    how = draw.choice(("content",) * 8 + ("gone", "folder", "pipe", "link"))
    if how == "content":
        (change_json if path.suffix == ".json" else change_weights)(path, draw)
        return
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "link":
        path.symlink_to(draw.choice(("/nowhere/at/all", "/proc/self/environ", str(path))))


class Hang(Exception):
    pass


def too_long(*_):
    raise Hang


def load_all_or_nothing(source: str, folder: Path, model: BertModel, whole: dict[str, dict]) -> bool:
    """Load; return whether that went well. What is left on the model must be all of it, or nothing."""
    if source == "fusion":
        for name in "abc":
            hfadapt.load(SAVED / "fusion3_static" / name, model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    # a bad machine's pace is no hang; SIGALRM would not end one inside of C, which the run's own limit does
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        hfadapt.load(folder, model, weights="bin" if source in PICKLED else "safetensors")
    except hfadapt.HFAdaptError:
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
        return False
    finally:
        signal.alarm(0)
    found = model.state_dict()
    assert all(torch.equal(found[key], before[key]) for key in before)
    assert all(torch.isfinite(tensor).all() for tensor in found.values() if tensor.is_floating_point())
    if source in OWN:
        assert found.keys() == whole[source].keys()
        assert all(torch.equal(found[key], whole[source][key]) for key in found)
    return True


@pytest.fixture(scope="module")
def whole(sources) -> dict[str, dict]:
    return {one: hfadapt.load(sources[one], base()).state_dict() for one in OWN}


def run(source: str, count: int, first: int, sources, whole, tmp_path) -> int:
    model, refused = base(), 0
    for seed in range(first, first + count):
        folder = tmp_path / str(seed)
        shutil.copytree(sources[source], folder)
        mutate(folder, random.Random(f"{source} {seed}"))
        try:
            refused += not load_all_or_nothing(source, folder, model, whole)
        except Exception as error:
            raise AssertionError(f"{source}, seed {seed}: {type(error).__name__}: {error}") from error
        if hasattr(model, "_hfadapt"):
            hfadapt.detach(model)
        shutil.rmtree(folder)
    return refused


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_folder_is_refused_or_loaded_whole(source, sources, whole, tmp_path):
    assert run(source, 63, 0, sources, whole, tmp_path) > 20


@pytest.mark.thorough
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_damaged_folders(source, sources, whole, tmp_path):
    assert run(source, 1250, 1000, sources, whole, tmp_path) > 400
