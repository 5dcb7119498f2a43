"""The norm behind a sub-layer finishes the op of the delta at its input, and nothing else changes."""

import copy
import pickle

import pytest
import torch

import hfadapt
from hfadapt.runtime.fused_norm import FusedNorm
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

INPUTS = tiny_inputs("bert", padding="right")


def adapted(dtype=torch.float64):
    model = tiny_model("bert").to(dtype)
    hfadapt.attach(model, "low_rank", names=["one", "two"])
    randomize(model)
    return model


def fused(model):
    return [m for m in model.modules() if isinstance(m.__dict__.get("forward"), FusedNorm)]


def unfused(model):
    model = copy.deepcopy(model)
    for leaf in fused(model):
        del leaf.__dict__["forward"]
        leaf.hfadapt.fuses_norm = False
    return model


def gradients(model, ids):
    model.zero_grad()
    out = model(**INPUTS, task_ids=ids)[0]
    out.square().sum().backward()
    return out.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("ids", ["one", ["two", "one", "two"]], ids=str)
def test_fused_and_unfused_give_the_same_outputs_and_gradients(ids):
    model = adapted()
    assert len(fused(model)) == 2
    got, got_gradients = gradients(model, ids)
    want, want_gradients = gradients(unfused(model), ids)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert got_gradients.keys() == want_gradients.keys()
    for name, gradient in want_gradients.items():
        torch.testing.assert_close(got_gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_trainable_norm_gets_its_gradient_through_the_op():
    model = adapted()
    for leaf in fused(model):
        leaf.requires_grad_(True)
    _, got = gradients(model, "one")
    _, want = gradients(unfused(model), "one")
    for name in (n for n in want if n.endswith("output.LayerNorm.weight")):
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_without_a_routing_and_at_dropped_layers_the_stock_norm_runs():
    model = tiny_model("bert")
    want = model(**INPUTS)[0]
    hfadapt.attach(model, "low_rank")
    randomize(model)
    with hfadapt.active(model, None):
        assert torch.equal(model(**INPUTS)[0], want)
    hfadapt.set_adapter_drop(model, 2)
    assert torch.equal(model(**INPUTS)[0], want)


@torch.no_grad()
def test_autocast_takes_the_stock_norm_and_its_dtype():
    model = adapted(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(**INPUTS, task_ids="one")[0]
        want = unfused(model)(**INPUTS, task_ids="one")[0]
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


def test_copies_point_at_their_own_norm_and_detach_gives_it_back():
    for model in (copy.deepcopy(adapted()), pickle.loads(pickle.dumps(adapted()))):
        assert fused(model) and all(m.__dict__["forward"].leaf is m for m in fused(model))
        hfadapt.detach(model)
        assert not fused(model)
