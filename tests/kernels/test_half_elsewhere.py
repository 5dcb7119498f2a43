"""A model with half of its adapters on another device: the call names the adapter, the tensor and both devices."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hfadapt
import hfadapt_kernels as hk
from hfadapt import plugins
from hfadapt.errors import AttachError, TaskError
from hfadapt.routing import task_ids
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.conformance.small import SMALL

INPUTS = tiny_inputs("bert", batch=2)
READ_UNASKED = re.compile(r"(prefix\.networks|invertible|pooler)\..*\.weight$|mtl_lora.*\.matrix$")
METHODS = sorted(plugins.methods().keys() - {"fusion"})  # which is added to adapters, below


def adapted(method="lora"):
    model = tiny_model("bert").eval()
    for name in ("a", "b"):
        hfadapt.attach(model, SMALL.get(method, method), name, seed=1, train_head=False)
    return model


def move(model, parameters, there):
    """Put copies of these parameters, which hold no numbers, in their places."""
    own = {id(parameter) for parameter in parameters}
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if id(parameter) in own:
                module._parameters[key] = nn.Parameter(there(parameter), parameter.requires_grad)


def on_a_card(parameter):
    with FakeTensorMode():  # a card that torch pretends to have
        return torch.empty(parameter.shape, device="cuda")


def on_meta(parameter):
    return torch.empty_like(parameter, device="meta")


def own(model):
    """The parameters of b that are not a's as well, by name."""
    shared = {id(parameter) for parameter in hfadapt.parameters_of(model, "a").values()}
    return {name: p for name, p in hfadapt.parameters_of(model, "b").items() if id(p) not in shared}


def parts(error, adapter, device):
    assert error.what and adapter in error.got and f"on {device}" in error.got, error
    assert error.allowed.startswith("on cpu, where ") and error.where in error.allowed and error.try_, error


@pytest.mark.parametrize("rows", [["a", "b"], ["b", "b"]], ids=["mixed", "alone"])
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_the_adapter_elsewhere_is_named(method, rows):
    model = adapted(method)
    want = model(**INPUTS, task_ids=["a", "a"])[0]
    move(model, hfadapt.parameters_of(model, "b").values(), on_a_card)
    with pytest.raises(AttachError) as caught:
        model(**INPUTS, task_ids=rows)
    parts(caught.value, ".b.", "cuda:0")
    assert "model.to('cpu')" in str(caught.value) and "more of its parameters" in str(caught.value)
    with pytest.raises(hk.ShapeError, match=r"on cpu.*, got .* on cuda:0\. Use .*\.to\('cpu'"):
        raise caught.value.__cause__
    assert torch.equal(model(**INPUTS, task_ids=["a", "a"])[0], want)


@pytest.mark.parametrize("rows", [["a", "b"], ["b", "b"]], ids=["mixed", "alone"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_names_the_adapter_that_is_elsewhere(method, rows):
    model = adapted(method)
    want = model(**INPUTS, task_ids=["a", "a"])[0]
    move(model, own(model).values(), on_meta)
    with pytest.raises(AttachError) as caught:
        model(**INPUTS, task_ids=rows)
    parts(caught.value, "b.", "meta")
    assert torch.equal(model(**INPUTS, task_ids=["a", "a"])[0], want)


@pytest.mark.parametrize("method", METHODS)
def test_each_single_tensor_of_an_adapter_is_named(method):
    # Each layer is the same again. And torch's products on a CPU read a matrix on meta as if it held numbers.
    names = [name for name in own(adapted(method)) if ".layer.0." not in name and not READ_UNASKED.search(name)]
    assert names
    for name in names:
        model = adapted(method)
        move(model, [own(model)[name]], on_meta)
        with pytest.raises(AttachError) as caught:
            model(**INPUTS, task_ids=["a", "b"])
        parts(caught.value, "b." + name.split("b.", 1)[1], "meta")
        assert "more of its" not in str(caught.value)


def test_a_fusion_that_is_elsewhere_is_named():
    model = adapted("bottleneck")
    hfadapt.add_fusion(model, hfadapt.Fuse("a", "b"))
    hfadapt.activate(model, hfadapt.Fuse("a", "b"))
    assert model(**INPUTS)[0].isfinite().all()
    move(model, [p for name, p in model.named_parameters() if ".fusions." in name], on_meta)
    with pytest.raises(AttachError) as caught:
        model(**INPUTS)
    parts(caught.value, "weight", "meta")


def test_a_router_that_is_elsewhere_is_named():
    model = adapted()
    hfadapt.add_router(model, hfadapt.Router("a", "b"))
    hfadapt.activate(model, hfadapt.Router("a", "b"))
    assert model(**INPUTS)[0].isfinite().all()
    move(model, [p for name, p in model.named_parameters() if name.startswith("hfadapt_shared")], on_meta)
    with pytest.raises(AttachError) as caught:
        model(**INPUTS)
    parts(caught.value, "weight", "meta")


def test_a_head_that_is_elsewhere_is_named():
    torch.manual_seed(0)
    tasks = [hfadapt.Task(name, hfadapt.Classification(2)) for name in ("a", "b")]
    model = hfadapt.MultiTaskModel.from_base(tiny_model("bert"), tasks, method="lora").eval()
    move(model, model.heads["b"].parameters(), on_meta)
    with pytest.raises(TaskError) as caught:
        model(**INPUTS, task_ids=["a", "b"])
    assert caught.value.where == "heads.b" and "on meta" in caught.value.got and "on cpu" in caught.value.allowed
    assert "model.to('cpu')" in caught.value.try_
    assert model(**INPUTS, task_ids=["a", "a"]).logits.isfinite().any()


def test_other_errors_are_left_as_they_are():
    model = adapted()
    with pytest.raises(RuntimeError) as caught:
        model(inputs_embeds=torch.ones(2, 3, 5), task_ids=["a", "b"])
    assert not isinstance(caught.value, AttachError)


@pytest.mark.parametrize("compiled", [False, True])
def test_task_ids_are_taken_to_the_rows(compiled, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    ids = torch.tensor([0, 1], dtype=torch.int32)
    found = task_ids.parse(ids, ("a", "b"), 2, torch.device("meta"))
    assert found.ids.is_meta and found.ids.dtype == torch.int64
    assert found.listed == (None if compiled else (0, 1))
