"""A model with half of its adapters on another device: the call names the tensor and both devices."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hfadapt
import hfadapt_kernels as hk
from hfadapt.testing.tiny import tiny_inputs, tiny_model


@pytest.mark.parametrize("rows", [["a", "b"], ["b", "b"]], ids=["mixed", "alone"])
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_the_adapter_elsewhere_is_named(method, rows):
    model = tiny_model("bert").eval()
    for name in ("a", "b"):
        hfadapt.attach(model, method, name, seed=1, train_head=False)
    inputs = tiny_inputs("bert", batch=2)
    want = model(**inputs, task_ids=["a", "a"])[0]
    own = {id(parameter) for parameter in hfadapt.parameters_of(model, "b").values()}
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if id(parameter) in own:
                with FakeTensorMode():  # a card that torch pretends to have
                    there = torch.empty(parameter.shape, device="cuda")
                module._parameters[key] = nn.Parameter(there)
    with pytest.raises(hk.ShapeError, match=r"on cpu.*, got .* on cuda:0\. Use .*\.to\('cpu'"):
        model(**inputs, task_ids=rows)
    assert torch.equal(model(**inputs, task_ids=["a", "a"])[0], want)
