"""Where data-parallel ranks must agree on who has a gradient, every trainable parameter has one."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import toy_batch, toy_model, toy_tasks


@pytest.fixture(autouse=True)
def several_processes(monkeypatch):
    """As ``torch.distributed`` answers under torchrun."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)


def without_gradient(model):
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("labels", [True, False], ids=["loss", "logits"])
def test_adapters_without_a_row_on_a_stock_model(labels):
    model = tiny_model("bert", "sequence-classification").train()
    hfadapt.attach(model, "bottleneck", names=["a", "b"])
    inputs = tiny_inputs("bert")
    size = len(inputs["input_ids"])
    out = model(**inputs, task_ids="a", **({"labels": torch.zeros(size, dtype=torch.long)} if labels else {}))
    start = out.loss if labels else out.logits.sum()
    start *= 2  # Trainer scales the loss in place
    start.backward()
    assert without_gradient(model) == []
    assert all(not p.grad.any() for p in hfadapt.parameters_of(model, "b").values())
    assert any(p.grad.any() for p in hfadapt.parameters_of(model, "a").values())


@pytest.mark.parametrize("dropped", [0, 2], ids=["every layer", "no layer"])
def test_tasks_without_a_row_in_a_multi_task_model(dropped):
    model = toy_model(toy_tasks()).train()
    hfadapt.set_adapter_drop(model, dropped)
    model(**toy_batch(toy_tasks(), ["topic", "topic"])).loss.backward()
    assert without_gradient(model) == []


def test_evaluation_and_single_processes_are_left_alone(monkeypatch):
    model = tiny_model("bert", "sequence-classification")
    hfadapt.attach(model, "bottleneck", names=["a", "b"])
    with torch.no_grad():
        assert not model(**tiny_inputs("bert"), task_ids="a").logits.requires_grad
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 1)
    model(**tiny_inputs("bert"), task_ids="a").logits.sum().backward()
    assert all(p.grad is None for p in hfadapt.parameters_of(model, "b").values())
