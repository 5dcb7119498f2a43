"""MAM is its two parts, and nothing else."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.errors import AttachError, CompositionError, ConfigError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

SMALL = ({"num_virtual_tokens": 3, "mlp_size": 8}, {"r": 4})


def output(model, **more):
    return model(**tiny_inputs("bert", padding="right"), **more)[0]


def test_defaults_are_the_papers():
    prefix, ffn = hfadapt.MAM()
    assert (prefix.num_virtual_tokens, prefix.reparametrization, prefix.form) == (30, "mlp", "concat")
    assert (ffn.r, ffn.scale, ffn.sublayers, ffn.init) == (512, 4.0, ("ffn",), "identity")
    assert hfadapt.MAM(prefix, ffn) == (prefix, ffn)


@torch.no_grad()
def test_one_adapter_of_both_is_a_stack_of_each():
    whole, apart = (tiny_model("bert").double() for _ in range(2))
    hfadapt.attach(whole, hfadapt.MAM(*SMALL), "both")
    randomize(whole)
    prefix, ffn = hfadapt.MAM(*SMALL)
    hfadapt.attach(apart, prefix, "prefix")
    hfadapt.attach(apart, ffn, "ffn")
    theirs = {**hfadapt.parameters_of(apart, "prefix"), **hfadapt.parameters_of(apart, "ffn")}
    for key, parameter in hfadapt.parameters_of(whole, "both").items():
        names = [
            key.replace("adapters.both", f"adapters.{n}").replace("shared.both", f"shared.{n}")
            for n in ("prefix", "ffn")
        ]
        next(theirs[n] for n in names if n in theirs).copy_(parameter)
    with hfadapt.active(apart, hfadapt.Stack("prefix", "ffn")):
        got = output(apart)
    torch.testing.assert_close(got, output(whole), rtol=0, atol=1e-12)


def test_layers_and_stack_are_of_both_parts():
    for part in hfadapt.MAM(layers=(0,), stack="encoder"):
        assert (part.layers, part.stack) == ((0,), "encoder")
    for part in hfadapt.UniPELT(layers=(0,), stack="encoder"):
        assert (part.layers, part.stack) == ((0,), "encoder")


@torch.no_grad()
def test_flattening_its_prefix_keeps_its_outputs():
    model = tiny_model("bert").double()
    handle = hfadapt.attach(model, hfadapt.MAM(*SMALL))
    randomize(model)
    want = output(model)
    hfadapt.flatten_prefix(model, "default")
    torch.testing.assert_close(output(model), want, rtol=0, atol=1e-9)
    kept = [hfadapt.plugins.methods()[config.method].kept(config) for config in hfadapt.MAM(*SMALL)]
    assert handle.num_parameters() == hfadapt.attach(tiny_model("bert"), kept).num_parameters()


def test_what_it_cannot_do_is_refused_with_a_reason():
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.MAM(*SMALL), names=["a", "b"])
    with pytest.raises(AttachError, match="prefix cannot be merged"):
        hfadapt.merge(model, "a")
    with pytest.raises(CompositionError, match="prefix"):
        hfadapt.add_fusion(model, ("a", "b"))
    with pytest.raises(AttachError, match="AttentionInterface"):
        hfadapt.attach(tiny_model("deberta-v2"), "mam")
    with pytest.raises(ConfigError, match="num_virtual_token"):
        hfadapt.MAM({"num_virtual_token": 3})


@pytest.mark.parametrize(
    "pair",
    [
        (hfadapt.PAL(8, num_heads=2, layers=(0,)), hfadapt.PAL(8, num_heads=4, layers=(1,))),
        (hfadapt.PrefixConfig(2, layers=(0,)), hfadapt.PrefixConfig(3, layers=(1,))),
        (hfadapt.Bottleneck(4, on="ffn", share=True), hfadapt.Bottleneck(4, on="attention", share=True)),
    ],
    ids=lambda pair: pair[0].method,
)
def test_two_configs_of_one_method_that_shares_across_layers_are_refused(pair):
    """Both would keep their shared parameters under the method's name, and one would lose its own."""
    model = tiny_model("bert")
    keys = list(model.state_dict())
    with pytest.raises(AttachError, match=f"{pair[0].method}: two configs.*Stack"):
        hfadapt.attach(model, pair)
    assert list(model.state_dict()) == keys
    hfadapt.attach(model, pair[0], "one")
    hfadapt.attach(model, pair[1], "two")
    with hfadapt.active(model, hfadapt.Stack("one", "two")):
        output(model)


def test_two_configs_without_shared_parameters_make_one_adapter():
    model = tiny_model("bert")
    parts = (hfadapt.LoRA(2, layers=(0,)), hfadapt.LoRA(4, layers=(1,)))
    handle = hfadapt.attach(model, parts)
    assert handle.num_parameters() == 2 * 2 * 2 * 32 + 2 * 4 * 2 * 32
