"""Parallel adapters: what they read, what they change, their scale, and the multi-head form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import hfadapt
from hfadapt.errors import AttachError, ConfigError
from hfadapt.runtime.attachment import deltas_of
from hfadapt.runtime.fused_norm import unfuse_norm
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model


def adapted(config, model_type="bert", **more):
    model = tiny_model(model_type).double()
    hfadapt.attach(model, config, seed=0, **more)
    randomize(model)
    return model


def calls(model):
    """What each delta was given, and what it returned, by leaf."""
    seen = {}
    for _, delta in deltas_of(model, "default"):

        def note(module, args, output, leaf=delta.site.leaf):
            seen[leaf] = (args[0].clone(), args[1].clone(), output.clone())

        delta.register_forward_hook(note)
    return seen


@torch.no_grad()
def run(model, model_type="bert"):
    return model(**tiny_inputs(model_type, padding="right"))[0]


def change(weights, x, scale):
    low = torch.relu(F.linear(x, weights.down, weights.down_bias))
    return scale * F.linear(low, weights.up, weights.up_bias)


@torch.no_grad()
def test_it_adds_s_times_the_bottleneck_of_what_the_sublayer_reads_bias_included():
    model = adapted(hfadapt.ParallelConfig(4, 3.0, layers=(1,), norm_before=True))
    for module in model.modules():  # hooks on a delta see no call that the norm behind it finishes
        unfuse_norm(module)
    seen = calls(model)
    run(model)
    (_, delta) = next(iter(deltas_of(model, "default")))
    ((value, source, output),) = seen.values()
    weights = delta.adapters["default"]
    normed = F.layer_norm(source, source.shape[-1:], weights.norm_before_weight, weights.norm_before_bias)
    torch.testing.assert_close(output, value + change(weights, normed, 3.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("model_type", ["bert", "bart", "mbart", "llama"])
@torch.no_grad()
def test_beside_the_ffn_it_reads_the_residual_stream_before_a_pre_norm(model_type):
    """BART (post-norm) and mBART (pre-norm) differ: mBART's adapter reads what its norm has not normed (trap 27)."""
    model = adapted(hfadapt.ParallelConfig(4, norm_before=True, stack="all"), model_type)
    sources, residuals = {}, {}
    for _, delta in deltas_of(model, "default"):
        tap = delta.site.source
        delta.register_forward_pre_hook(lambda m, args, leaf=tap.leaf: sources.__setitem__(leaf, args[1].clone()))
        leaf = model.get_submodule(tap.leaf)
        leaf.register_forward_pre_hook(lambda m, args, path=tap.leaf: residuals.__setitem__(path, args[0].clone()))
        assert isinstance(leaf, torch.nn.Linear) == (model_type in ("bert", "bart"))
    run(model, model_type)
    assert sources and all(torch.equal(sources[leaf], residuals[leaf]) for leaf in sources)


@torch.no_grad()
def test_in_attention_it_is_added_before_the_output_projection():
    """And a serial adapter's change comes behind it (trap 28)."""
    model = adapted(hfadapt.ParallelConfig(4, 1.0, "attention", layers=(0,)))
    (_, delta) = next(iter(deltas_of(model, "default")))
    seen = calls(model)
    entered = {}
    dense = model.encoder.layer[0].attention.output.dense
    dense.register_forward_hook(lambda m, args, output: entered.update(heads=args[0].clone()))
    run(model)
    ((value, source, output),) = seen.values()
    assert torch.equal(entered["heads"], output)
    torch.testing.assert_close(output, value + change(delta.adapters["default"], source, 1.0), rtol=0, atol=1e-12)
    assert delta.site.leaf.endswith("attention.output.dense") and delta.site.side == "input"
    serial = adapted(hfadapt.Houlsby(size=4, on="attention", layers=(0,)))
    (_, delta) = next(iter(deltas_of(serial, "default")))
    assert delta.site.side == "output"


@torch.no_grad()
def test_a_free_head_changes_itself_alone_and_one_head_is_the_joint_form():
    model = adapted(hfadapt.ParallelConfig(3, 1.0, "attention", by_head=True, layers=(0,)))
    seen = calls(model)
    (_, delta) = next(iter(deltas_of(model, "default")))
    weights = delta.adapters["default"]
    assert weights.down.shape == (4 * 3, 32) and weights.up.shape == (4, 8, 3)
    weights.up_bias.zero_()
    weights.up[1:] = 0
    run(model)
    ((value, _, output),) = seen.values()
    changed = (output - value).unflatten(-1, (4, 8)).abs().amax((0, 1, 3))
    assert changed[0] > 0 and torch.equal(changed[1:], torch.zeros(3, dtype=torch.float64))


@torch.no_grad()
def test_multi_head_with_frozen_queries_and_with_free_projections_are_different_models():
    """The name says which: ``by_head`` trains H r d per place more than ``PrefixConfig(form="relu")`` (trap 29)."""
    free = hfadapt.attach(tiny_model("bert"), hfadapt.ParallelConfig(3, 1.0, "attention", by_head=True, bias=False))
    frozen = hfadapt.attach(tiny_model("bert"), hfadapt.PrefixConfig(3, "flat", form="relu"))
    assert frozen.num_parameters() == 2 * 2 * 3 * 32
    assert free.num_parameters() == 2 * (4 * 3 * 32 + 3 * 32)


@pytest.mark.parametrize("scale", ["learned", "channel"])
@torch.no_grad()
def test_a_learned_scale_starts_at_one_and_is_saved(scale, tmp_path):
    learned = adapted(hfadapt.ParallelConfig(4, scale))
    fixed = tiny_model("bert").double()
    hfadapt.attach(fixed, hfadapt.ParallelConfig(4, 2.5))
    inside = hfadapt.parameters_of(fixed, "default")
    for (_, mine), (_, other) in zip(deltas_of(learned, "default"), deltas_of(fixed, "default"), strict=True):
        for key, parameter in mine.adapters["default"].named_parameters():
            if key == "scale":
                parameter.fill_(2.5)
            else:
                getattr(other.adapters["default"], key).copy_(parameter)
    assert inside
    torch.testing.assert_close(run(learned), run(fixed), rtol=0, atol=1e-12)
    hfadapt.save(learned, tmp_path)
    assert torch.equal(run(hfadapt.load(tmp_path, tiny_model("bert").double())), run(learned))


def test_only_cross_attention():
    model = tiny_model("bart")
    hfadapt.attach(model, hfadapt.ParallelConfig(4, sublayers="cross"))
    assert all("encoder_attn" in key for key in hfadapt.parameters_of(model, "default"))
    with pytest.raises(AttachError, match="no chosen layer has cross-attention"):
        hfadapt.attach(tiny_model("bert"), hfadapt.ParallelConfig(4, sublayers="cross"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r"),
        ({"scale": "big"}, "a number, 'learned' or 'channel'"),
        ({"sublayers": ("fnn",)}, "'ffn', 'attention'"),
        ({"sublayers": ("attention", "self")}, "stands for both"),
        ({"by_head": True}, "the FFN has no heads"),
        ({"init": "zero"}, "'identity', 'normal'"),
    ],
    ids=str,
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        hfadapt.ParallelConfig(**fields)
