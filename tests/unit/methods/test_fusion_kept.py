"""AdapterFusion keeps products of its weights in inference: no bit hangs on it, whatever happens to the weights."""

from __future__ import annotations

import copy

import pytest
import torch

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt_kernels.adapter_fusion import kept as kept_module

IDS = torch.randint(4, 90, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = tiny_model("bert")
    hfadapt.attach(found, {"method": "bottleneck", "reduction_factor": 16}, names=["a", "b"], verify=False)
    hfadapt.add_fusion(found, ["a", "b"])
    randomize(found)
    return found.eval()


def run(model):
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state


def test_bits_are_the_same_before_and_while_products_are_kept(model, monkeypatch):
    made, stock = [], kept_module.KeptProducts.of
    monkeypatch.setattr(kept_module.KeptProducts, "of", lambda *given: [made.append(1), stock(*given)][1])
    with_gradients = model(input_ids=IDS).last_hidden_state.detach()
    assert not made
    first = run(model)
    assert torch.equal(first, with_gradients) and torch.equal(run(model), first) and made
    assert torch.equal(run(copy.deepcopy(model)), first)


def test_weights_that_change_are_seen(model):
    run(model)
    for change in (
        lambda: [p.mul_(1.01) for n, p in model.named_parameters() if "hfadapt" in n],
        lambda: [p.data.mul_(1.01) for n, p in model.named_parameters() if "hfadapt" in n],
        lambda: model.load_state_dict({k: v * 1.01 for k, v in model.state_dict().items()}),
        lambda: hfadapt.add_fusion(model, ["b", "a"]),
    ):
        before = run(model)
        with torch.no_grad():
            change()
        after = run(model)
        assert torch.equal(after, run(copy.deepcopy(model)))
        assert not torch.equal(after, before)


def test_a_step_of_training_in_between_is_seen(model):
    run(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()(input_ids=IDS).last_hidden_state.square().sum().backward()
    torch.optim.SGD(trained, 0.1).step()
    model.eval()
    assert torch.equal(run(model), run(copy.deepcopy(model)))
