"""Adapters sit on one of the models that share modules: on a second one the first's would fall silent."""

from __future__ import annotations

import copy

import pytest
import torch

import hfadapt
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

SEQUENCES, TOKENS = "sequence-classification", "token-classification"


def model_for(task):
    torch.manual_seed(0)
    return tiny_model("bert", task).eval()


@torch.no_grad()
def logits(model, task=SEQUENCES):
    return model(**tiny_inputs("bert", task)).logits


def adapted(model, method="lora", name="a"):
    hfadapt.attach(model, method, name)
    randomize(model)
    return model


@pytest.mark.parametrize("method", ["lora", "pal", "prefix", (hfadapt.LoRA(target_modules=("pooler.dense",)),)])
def test_a_model_around_an_adapted_one_is_refused_and_the_adapter_goes_on(method):
    model = model_for(SEQUENCES)
    adapted(model.bert)
    before = logits(model)
    with pytest.raises(AttachError, match="adapted as parts of another.*bert"):
        hfadapt.attach(model, method, "b")
    assert torch.equal(logits(model), before)
    assert hfadapt.attachment(model.bert).names == ("a",)


@pytest.mark.parametrize("method", ["lora", "pal"])
def test_a_model_inside_an_adapted_one_is_refused(method):
    model = adapted(model_for(SEQUENCES))
    before = logits(model)
    with pytest.raises(AttachError, match="adapted as parts of another"):
        hfadapt.attach(model.bert, method, "b")
    assert torch.equal(logits(model), before)


def test_a_second_model_on_the_same_trunk_is_refused_until_the_first_is_detached(tmp_path):
    first, second = model_for(SEQUENCES), model_for(TOKENS)
    hfadapt.save(adapted(model_for(TOKENS)), tmp_path)
    second.bert = first.bert
    stock = logits(second, TOKENS)
    adapted(first)
    before = logits(first)
    with pytest.raises(AttachError, match="adapted as parts of another"):
        hfadapt.attach(second, "lora", "b")
    with pytest.raises((AttachError, CheckpointError), match="adapted as parts of another"):
        hfadapt.load(tmp_path, second)
    assert torch.equal(logits(first), before)
    hfadapt.detach(first)
    adapted(second)
    hfadapt.detach(second)
    assert torch.equal(logits(second, TOKENS), stock)


def test_a_copy_of_what_both_share_may_be_adapted():
    first, second = adapted(model_for(SEQUENCES)), model_for(TOKENS)
    before = logits(first)
    trunk = copy.deepcopy(first)
    hfadapt.detach(trunk)
    second.bert = trunk.bert
    adapted(second, "pal", "b")
    assert torch.equal(logits(first), before)
