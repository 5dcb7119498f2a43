"""Folders that an earlier release wrote load to the same bits (they are made by tests/fixtures/make_folders.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

import hfadapt
from hfadapt import MultiTaskModel
from hfadapt.testing.tiny import tiny_inputs
from hfadapt.testing.toy import toy_batch

RELEASES = sorted((Path(__file__).parents[1] / "fixtures").glob("written_by_*"))
HEAD = "sequence-classification"


@pytest.fixture(params=RELEASES, ids=[folder.name for folder in RELEASES])
def release(request):
    return request.param


def check(release, name, model, run):
    """Every tensor of the adapters and heads is the saved one bit for bit; outputs differ by the processor's."""
    saved = load_file(release / f"{name}-tensors.safetensors")
    mine = dict(model.named_parameters())
    assert set(saved) <= set(mine)
    for tensor_name, tensor in saved.items():
        assert torch.equal(mine[tensor_name], tensor), tensor_name
    for key, expected in load_file(release / f"{name}-outputs.safetensors").items():
        with torch.no_grad():
            torch.testing.assert_close(run(model.eval(), key), expected, rtol=1e-5, atol=1e-5)


def under(model, adapter):
    hfadapt.activate(model, adapter)
    return model(**tiny_inputs("bert", HEAD, padding="right"))[0]


def test_a_stock_model_with_adapters(release):
    model = hfadapt.load(release / "stock", AutoModelForSequenceClassification.from_pretrained(release / "base"))
    assert hfadapt.attachment(model).names == ("mnli", "stsb")
    check(release, "stock", model, under)


def test_a_multi_task_model_with_fusion(release):
    model = MultiTaskModel.from_pretrained(release / "multitask", base=AutoModel.from_pretrained(release / "base"))
    check(release, "multitask", model, lambda model, key: torch.nan_to_num(model(**toy_batch()).logits))


def test_a_folder_in_pefts_format(release):
    model = AutoModelForSequenceClassification.from_pretrained(release / "base")
    hfadapt.load_peft(model, release / "peft", "mnli")
    check(release, "peft", model, under)


def test_there_are_such_folders():
    assert RELEASES
