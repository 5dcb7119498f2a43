"""``torch.export`` of an adapted model: the graph answers as the model does, for rows of any adapter."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

TASK = "sequence-classification"


def adapted(method, *names):
    torch.manual_seed(0)
    model = tiny_model("bert", TASK).eval()
    hfadapt.attach(model, method, names=names)
    randomize(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("method", ["lora", "bottleneck", "prefix", "pal"])
def test_the_graph_of_one_adapter_answers_as_the_model(method):
    model, inputs = adapted(method, "a"), dict(tiny_inputs("bert", TASK))
    graph = torch.export.export(model, (), inputs).module()
    others = {key: value.flip(0) for key, value in inputs.items()}
    torch.testing.assert_close(graph(**others)["logits"], model(**others).logits, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_graph_of_several_takes_task_ids():
    model, inputs = adapted("lora", "a", "b"), dict(tiny_inputs("bert", TASK))
    ids = torch.arange(len(inputs["input_ids"])) % 2
    graph = torch.export.export(model, (), {**inputs, "task_ids": ids}).module()
    for given in (ids, 1 - ids):
        want = model(**inputs, task_ids=given).logits
        torch.testing.assert_close(graph(**inputs, task_ids=given)["logits"], want, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(**inputs, task_ids=ids).logits, want, atol=1e-3)


def test_what_was_noted_of_the_forward_is_the_stock_methods():
    model = adapted("lora", "a")
    assert model.forward.__code__ is type(model).forward.__code__
