"""UniPELT: three parts, each with a gate of its own."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.errors import AttachError, RoutingError
from hfadapt.runtime.attachment import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

SMALL = ({"num_virtual_tokens": 3, "mlp_size": 8}, {"size": 4}, {"r": 2})


def adapted(config=None, model_type="bert"):
    model = tiny_model(model_type).double()
    hfadapt.attach(model, hfadapt.UniPELT(*SMALL) if config is None else config, seed=0)
    randomize(model)
    return model


def gates(model):
    """The bias of every gate."""
    return {k: p for k, p in hfadapt.parameters_of(model, "default").items() if k.endswith("gate_bias")}


def output(model, inputs=None, **more):
    return model(**(inputs or tiny_inputs("bert", padding="right")), **more)[0]


def test_every_part_has_a_gate_at_every_place():
    model = adapted()
    places = {path: delta for path, delta in deltas_of(model, "default")}
    assert len(gates(model)) == len(places) == 2 * (1 + 1 + 2)  # prefix, adapter, query and value, in two layers
    shapes = {tuple(d.adapters["default"].gate_weight.reshape(-1).shape) for d in places.values()}
    assert shapes == {(32,)}


@torch.no_grad()
def test_gates_that_are_shut_give_the_base():
    """LoRA and adapter add nothing; a prefix whose keys and values are zero still takes its share of the attention."""
    for part, closed in (("lora", True), ("bottleneck", True), ("prefix", False)):
        config = next(c for c in hfadapt.UniPELT(*SMALL) if c.method == part)
        model = adapted(config)
        with hfadapt.active(model, None):
            base = output(model)
        assert not torch.allclose(output(model), base, atol=1e-6)
        for bias in gates(model).values():
            bias.fill_(-1e4)
        assert torch.allclose(output(model), base, atol=1e-12) == closed


@torch.no_grad()
def test_an_open_gate_is_the_part_without_one():
    config = hfadapt.LoRA(2, gate="mean")
    model, plain = adapted(config), tiny_model("bert").double()
    hfadapt.attach(plain, hfadapt.LoRA(2))
    for bias in gates(model).values():
        bias.fill_(1e4)
    for (_, gated), (_, free) in zip(deltas_of(model, "default"), deltas_of(plain, "default"), strict=True):
        for key in ("lora_a", "lora_b"):
            getattr(free.adapters["default"], key).copy_(getattr(gated.adapters["default"], key))
    torch.testing.assert_close(output(model), output(plain), rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_mean_over_real_tokens_ignores_padding_and_the_published_one_does_not():
    inputs = tiny_inputs("bert", padding="right")
    real = int(inputs["attention_mask"][1].sum())
    alone = {k: v[1:2, :real] for k, v in inputs.items()}
    for gate, same in (("mean", True), ("mean_padded", False)):
        model = adapted((hfadapt.LoRA(2, gate=gate), hfadapt.PrefixConfig(3, "flat", gate=gate)))
        padded, short = output(model, inputs)[1, :real], output(model, alone)[0]
        assert torch.allclose(padded, short, atol=1e-9) == same


@pytest.mark.parametrize("part", ["lora", "bottleneck", "prefix"])
@torch.no_grad()
def test_a_mean_over_tokens_refuses_to_decode_step_by_step(part):
    """The cache hides the tokens that the mean needs; without it generation works."""
    config = next(c for c in hfadapt.UniPELT(*SMALL) if c.method == part)
    model = tiny_model("gpt2", "causal-lm")
    hfadapt.attach(model, config)
    ids = tiny_inputs("gpt2")["input_ids"]  # without a mask: nothing is padded
    with pytest.raises(RoutingError, match="use_cache=False"):
        model.generate(ids, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3, pad_token_id=0, use_cache=False).shape[1] == 10


def test_it_does_not_merge():
    with pytest.raises(AttachError, match="prefix cannot be merged"):
        hfadapt.merge(adapted(), "default")
