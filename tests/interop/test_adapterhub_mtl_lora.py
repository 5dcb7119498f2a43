"""AdapterHub's MTL-LoRA: tasks that shared their matrices there share them here, read one by one or as a setup."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

import hfadapt
from hfadapt.errors import CheckpointError
from hfadapt.runtime import deltas_of

SAVED = Path(__file__).resolve().parents[1] / "golden" / "data" / "adapterhub" / "saved"
CASE = SAVED / "mtl_lora_multitask3"
INPUTS = load_file(str(SAVED / "inputs.safetensors"))
WANT = load_file(str(CASE / "expected.safetensors"))["last_hidden_state"]
#: Of the file: the library's MultiTask counts the adapters in their order.
IDS = torch.tensor([2, 0, 1, 1, 0, 2])


def base() -> BertModel:
    return BertModel.from_pretrained(SAVED / "base").eval()


@torch.no_grad()
def differs(model, **call: Any) -> float:
    found = model(**INPUTS, **call).last_hidden_state
    return ((found - WANT).abs().max() / WANT.abs().max()).item()


def shared(model) -> bool:
    return all(
        delta.own(name).lora_a is delta.own("a").lora_a and delta.own(name).lora_b is delta.own("a").lora_b
        for _, delta in deltas_of(model)
        for name in "bc"
    )


def test_a_setup_of_many_tasks_gives_the_librarys_rows() -> None:
    model = hfadapt.load(CASE / "setup", base())
    assert shared(model)
    assert differs(model, task_ids=IDS) < 1e-5
    assert differs(model, task_ids=[list("abc")[i] for i in IDS]) < 1e-5


def test_tasks_that_are_loaded_one_after_the_other_share_what_is_the_same() -> None:
    model = base()
    for name in "cab":
        hfadapt.load(CASE / "setup" / name, model)
    assert shared(model)
    assert differs(model, task_ids=[list("abc")[i] for i in IDS]) < 1e-5


def other(folder: Path, name: str, change: Any = None, **fields: Any) -> Path:
    shutil.copytree(CASE / "setup" / name, folder)
    file = folder / "adapter_config.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "config": {**data["config"], **fields}}))
    if change is not None:
        tensors = load_file(str(folder / "adapter.safetensors"))
        save_file({key: change(key, tensor) for key, tensor in tensors.items()}, str(folder / "adapter.safetensors"))
    return folder


def test_a_task_with_other_shared_numbers_is_of_another_group(tmp_path) -> None:
    model = hfadapt.load(CASE / "setup" / "a", base())
    hfadapt.load(other(tmp_path / "b", "b", lambda key, t: t + 1e-3 if key.endswith("lora_B") else t), model)
    for _, delta in deltas_of(model):
        assert delta.own("a").lora_b is not delta.own("b").lora_b


def test_a_task_whose_group_was_trained_on_is_refused_and_the_group_stays() -> None:
    model = hfadapt.load(CASE / "setup" / "a", base())
    with torch.no_grad():
        next(iter(deltas_of(model)))[1].own("a").lora_b.add_(0.1)
        want = model(**INPUTS).last_hidden_state
    with pytest.raises(CheckpointError, match="shares parameters with others"):
        hfadapt.load(CASE / "setup" / "b", model)
    with torch.no_grad():
        assert torch.equal(model(**INPUTS).last_hidden_state, want)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"use_gating": True}, "with a gate"),
        ({"task_specific_matrix_type": "linear"}, "cannot make"),
        ({"n_up_projection": 2}, "differ"),
        ({"n_up_projection": 0}, "n_up_projection=0"),
        ({"weights_sharpness": 0.0}, "weights_sharpness=0.0"),
        ({"use_dora": True}, "DoRA"),
        ({"r": 2}, "rank"),
    ],
    ids=str,
)
def test_what_no_field_may_say_is_refused_by_name(tmp_path, fields, match) -> None:
    model = base()
    with pytest.raises(CheckpointError, match=match):
        hfadapt.load(other(tmp_path / "a", "a", **fields), model)
    assert not any("hfadapt" in key for key in model.state_dict())


def test_tasks_are_written_with_the_librarys_keys_and_join_again(tmp_path) -> None:
    model = hfadapt.load(CASE / "setup", base())
    for name in "abc":
        hfadapt.export(model, tmp_path / name, name, format="adapterhub")
        mine, theirs = (load_file(str(place / name / "adapter.safetensors")) for place in (tmp_path, CASE / "setup"))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    again = base()
    for name in "abc":
        hfadapt.load(tmp_path / name, again)
    assert shared(again) and differs(again, task_ids=IDS) < 1e-5
