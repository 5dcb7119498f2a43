"""What ``hfadapt inspect`` says of a model, without loading weights."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import AutoConfig

from hfadapt import Method, MethodConfig, plugins
from hfadapt.adapters.inspect import describe, skeleton
from hfadapt.architecture import explain
from hfadapt.plugins.registry import Registry
from hfadapt.testing.tiny import TINY_TYPES, tiny_config, tiny_model


@pytest.mark.parametrize("name", TINY_TYPES)
def test_every_family_is_described_without_weights(name):
    model = skeleton(tiny_config(name))
    assert all(parameter.is_meta for parameter in model.parameters())
    report = describe(model, methods=False)
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {row.slot for row in report.stacks[0].slots} >= {"attention_output", "ffn_output", "layer_sum"}
    assert all(row.outputs for row in report.stacks[0].leaves if row.role in ("query", "fused", "ffn_out"))
    json.dumps(report.to_dict())


def test_methods_are_tried_and_taken_off_again():
    model = skeleton(tiny_config("bert"))
    names = list(model.state_dict())
    fits = {row.method: row for row in describe(model).methods}
    assert fits["pal"].parameters > 0
    assert fits["pal"].share == fits["pal"].parameters / sum(p.numel() for p in model.parameters())
    assert list(model.state_dict()) == names


def test_a_method_that_does_not_fit_says_why(monkeypatch):
    @dataclass(frozen=True)
    class CrossConfig(MethodConfig):
        method: ClassVar[str] = "cross"

    class CrossMethod(Method):
        name = "cross"
        config_class = CrossConfig

        def place(self, config, arch, model):
            raise self.refuse("there is no cross attention", arch)

    registry = Registry("method")
    registry.add("cross", CrossMethod())
    monkeypatch.setattr(plugins, "methods", lambda: registry)
    (fit,) = describe(skeleton(tiny_config("bert"))).methods
    assert (fit.method, fit.parameters, fit.share) == ("cross", None, None)
    assert "no cross attention" in fit.why_not


def test_an_unknown_family_is_described_through_the_probe():
    report = describe(skeleton(AutoConfig.for_model("phi3", **_SMALL)), methods=False)
    assert report.source == "probe"
    assert report.stacks[0].layers == 5
    assert "qkv_proj" in report.linears


def test_a_model_that_cannot_be_mapped_is_described_with_the_reason():
    sizes = {"hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    report = describe(skeleton(AutoConfig.for_model("squeezebert", num_hidden_layers=2, **sizes)))
    assert report.stacks == ()
    assert (
        "no linears in encoder.layers (SqueezeBertModule)" in report.refusal
        and "target_modules='all-linear'" in report.refusal
    )


def test_a_block_of_experts_has_no_hidden_units_to_show():
    (stack,) = describe(skeleton(AutoConfig.for_model("mixtral", **_SMALL)), methods=False).stacks
    slots = {row.slot: row.leaf for row in stack.slots}
    assert slots["ffn_output"] == "layers.0.mlp" and "ffn_hidden" not in slots


def test_a_layer_that_is_not_there_gives_the_last_one():
    report = describe(skeleton(tiny_config("t5", num_layers=3)), layer=2, methods=False)
    assert [stack.layer for stack in report.stacks] == [2, 1 if report.stacks[1].layers == 2 else 2]


def test_explain_names_every_mapped_module_of_a_layer():
    text = explain(tiny_model("gemma2"))
    for words in ("sandwich_ffn norm", "h = h + norm(f(norm(h)))", "layers.0.mlp.up_proj (Linear 32 -> 64)", "causal"):
        assert words in text
    with torch.device("meta"):
        assert explain(tiny_model("gemma2")) == text


_SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
