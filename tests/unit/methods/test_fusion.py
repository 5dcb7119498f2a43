"""AdapterFusion: what it computes, trains, saves, records and refuses."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.errors import CompositionError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt_plugins.methods.fusion.adding import fusion_layers

METHODS = {
    "pfeiffer": "pfeiffer",
    "houlsby": "houlsby",
    "parallel": hfadapt.ParallelConfig(4, sublayers=("ffn", "attention")),
    "low_rank": "low_rank",
    "lora": hfadapt.LoRA(2),
}


def fused(method="pfeiffer", model_type="bert", config="dynamic", names=("a", "b"), **more):
    model = tiny_model(model_type).double()
    hfadapt.attach(model, METHODS.get(method, method), names=names, seed=0)
    randomize(model)
    hfadapt.add_fusion(model, hfadapt.Fuse(*names), config, **more)
    with torch.no_grad():
        torch.manual_seed(3)
        for layer in fusion_layers(model).values():
            for key, parameter in layer.named_parameters():
                if key != "temperature":
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, tiny_inputs(model_type, padding="right")


def output(model, inputs, **more):
    return model(**inputs, **more)[0]


@pytest.mark.parametrize("model_type", ["bert", "albert", "modernbert", "gpt2", "llama", "opt", "t5", "bart", "vit"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_fusion_of_equal_adapters_without_value_matrix_is_that_adapter(method, model_type):
    """Weights sum to one, so a mixture of equal outputs is that output, whatever the queries and keys."""
    if method == "lora" and model_type in ("gpt2", "modernbert"):
        method = hfadapt.LoRA(2, target_modules=("output",))
    model, inputs = fused(method, model_type, "static")
    inside = [hfadapt.parameters_of(model, name) for name in ("a", "b")]
    for first, second in zip(*(p.values() for p in inside), strict=True):
        second.copy_(first)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    with hfadapt.active(model, "a"):
        want = output(model, inputs)
    got = output(model, inputs)
    tolerance = 1e-4 if model_type in ("llama", "t5", "modernbert") else 1e-9  # norms or rotary embeddings in float32
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_fusion_of_one_adapter_kept_is_that_adapter():
    """Pruned to one adapter, with V the identity, the fusion is that adapter."""
    model, inputs = fused(config="static")
    with hfadapt.record_fusion(model) as record:
        output(model, inputs)
    kept = hfadapt.prune_fusion(model, record, keep=1)
    for layer in fusion_layers(model).values():
        layer.kept = ("b",)
    assert all(len(names) == 1 for names in kept.values())
    got = output(model, inputs)
    with hfadapt.active(model, "b"):
        torch.testing.assert_close(got, output(model, inputs), rtol=1e-9, atol=1e-9)


def test_only_the_fusion_trains():
    model, inputs = fused()
    output(model.train(), inputs).square().mean().backward()
    grads = {n for n, p in model.named_parameters() if p.grad is not None}
    assert grads and all(".fusions." in n for n in grads)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    # A key's bias moves all scores alike: without dropout it has no gradient.
    assert {n for n in trained if not n.endswith("key_bias")} == {n for n in grads if not n.endswith("key_bias")}


def test_gradients_reach_every_fusion_parameter_and_the_adapters_when_they_train():
    model, inputs = fused(train_adapters=True)
    output(model, inputs).square().mean().backward()
    for layer in fusion_layers(model).values():
        assert all(p.grad is not None for key, p in layer.named_parameters() if key != "key_bias")
    for name in ("a", "b"):
        assert all(p.grad is not None for p in hfadapt.parameters_of(model, name).values())


@torch.no_grad()
def test_save_and_load(tmp_path):
    model, inputs = fused(names=("a", "b", "c"))
    hfadapt.attach(model, "pfeiffer", "alone", seed=4)
    with hfadapt.record_fusion(model) as record, hfadapt.active(model, hfadapt.Fuse("a", "b", "c")):
        output(model, inputs)
    hfadapt.prune_fusion(model, record, keep=2)
    hfadapt.compose(model, "mixed", hfadapt.Fuse("a", "b", "c"))
    want = output(model, inputs, task_ids="mixed")
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, tiny_model("bert").double())
    assert torch.equal(output(again, inputs, task_ids="mixed"), want)
    hfadapt.save(model, tmp_path / "one", names=["alone"])
    one = hfadapt.load(tmp_path / "one", tiny_model("bert").double())
    assert not fusion_layers(one)


@torch.no_grad()
def test_rows_choose_between_a_fusion_and_an_adapter():
    model, inputs = fused()
    hfadapt.compose(model, "both", hfadapt.Fuse("a", "b"))
    alone = {name: output(model, inputs, task_ids=name) for name in ("a", "both")}
    mixed = output(model, inputs, task_ids=["both", "a", "both"])
    for row, name in enumerate(("both", "a", "both")):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_stack_of_an_adapter_on_a_fusion():
    model, inputs = fused(names=("a", "b"))
    hfadapt.attach(model, "pfeiffer", "top", seed=2)
    randomize(model, seed=9)
    with hfadapt.active(model, hfadapt.Stack(hfadapt.Fuse("a", "b"), "top")):
        stacked = output(model, inputs)
    with hfadapt.active(model, hfadapt.Fuse("a", "b")):
        assert not torch.allclose(stacked, output(model, inputs))


@torch.no_grad()
def test_dropped_layers_have_no_fusion():
    model, inputs = fused()
    with hfadapt.active(model, None):
        base = output(model, inputs)
    hfadapt.set_adapter_drop(model, 2)
    assert torch.equal(output(model, inputs), base)


def test_regularizer_is_the_distance_of_v_from_the_identity():
    model, _ = fused()
    layers = fusion_layers(model)
    want = sum(0.01 * (la.value_weight - torch.eye(la.width)).square().sum() for la in layers.values())
    torch.testing.assert_close(hfadapt.fusion_regularizer(model), want)
    assert hfadapt.fusion_regularizer(fused(config="static")[0]) is None


def test_temperature_falls_in_training_and_stays_in_evaluation():
    model, inputs = fused(config={"temperature": True})
    (first, *_) = fusion_layers(model).values()
    output(model, inputs)
    assert first.temperature.item() == 50.0
    output(model.train(), inputs)
    assert first.temperature.item() == pytest.approx(49.95)
    assert not first.temperature.requires_grad


@torch.no_grad()
def test_recorded_weights_are_means_over_real_tokens(tmp_path):
    model, inputs = fused()
    with hfadapt.record_fusion(model) as record:
        output(model, inputs)
    once = record.means
    assert all(sum(row.values()) == pytest.approx(1.0) for row in once.values())
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 5)
    with hfadapt.record_fusion(model) as record:
        output(model, inputs)
    for path, row in record.means.items():
        assert row == pytest.approx(once[path])
    assert all(layer.record is None for layer in fusion_layers(model).values())
    pytest.importorskip("matplotlib")
    record.plot(tmp_path / "fusion.png")
    assert (tmp_path / "fusion.png").stat().st_size > 1000


@torch.no_grad()
def test_dropout_acts_on_scores_so_that_weights_still_sum_to_one():
    """AdapterHub drops scores before the softmax, and so does this (trap 37)."""
    model, inputs = fused(config={"dropout": 0.5})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with hfadapt.record_fusion(model) as still:
        output(model, inputs)
    with hfadapt.record_fusion(model) as dropped:
        output(model.train(), inputs)
    for path, row in dropped.means.items():
        assert sum(row.values()) == pytest.approx(1.0)
        assert row != pytest.approx(still.means[path], rel=1e-6)


@pytest.mark.parametrize("keep", [0, 3, True])
def test_pruning_to_an_impossible_number_is_refused(keep):
    model, inputs = fused()
    with torch.no_grad(), hfadapt.record_fusion(model) as record:
        output(model, inputs)
    with pytest.raises(CompositionError, match="1 to 2"):
        hfadapt.prune_fusion(model, record, keep=keep)


def test_what_cannot_be_fused_is_refused_with_a_reason():
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.PrefixConfig(2, "flat"), names=["a", "b"])
    with pytest.raises(CompositionError, match="cannot be fused.*prefix"):
        hfadapt.add_fusion(model, ("a", "b"))
    hfadapt.attach(model, "pfeiffer", "c")
    hfadapt.attach(model, "houlsby", "d")
    with pytest.raises(CompositionError, match="not at the same places"):
        hfadapt.add_fusion(model, ("c", "d"))
    with pytest.raises(CompositionError, match="not attached"):
        hfadapt.add_fusion(model, ("c", "x"))
    with pytest.raises(CompositionError, match="add_fusion"):
        hfadapt.activate(model, hfadapt.Fuse("c", "d"))


@torch.no_grad()
def test_layers_that_never_ran_are_not_recorded_and_keep_all():
    """Zeros there would let pruning choose by the alphabet."""
    model, inputs = fused()
    hfadapt.set_adapter_drop(model, 1)
    with hfadapt.record_fusion(model) as record:
        output(model, inputs)
    lower, upper = sorted(fusion_layers(model))
    assert list(record.means) == [upper]
    assert list(hfadapt.prune_fusion(model, record, keep=1)) == [upper]
    assert [len(fusion_layers(model)[path].kept) for path in (lower, upper)] == [2, 1]
    with hfadapt.record_fusion(model) as empty:
        pass
    with pytest.raises(CompositionError, match="nothing was recorded"):
        hfadapt.prune_fusion(model, empty, keep=1)


@torch.no_grad()
def test_widths_that_differ_are_refused_unless_they_are_meant(tmp_path):
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hfadapt.attach(model, hfadapt.Pfeiffer(size=4), "narrow", seed=0)
    hfadapt.attach(model, hfadapt.Pfeiffer(size=8), "wide", seed=1)
    with pytest.raises(CompositionError, match="narrow: 4, wide: 8.*mixed_widths=True"):
        hfadapt.add_fusion(model, ("narrow", "wide"), "static")
    hfadapt.add_fusion(model, ("narrow", "wide"), "static", mixed_widths=True)
    # the same function as a wide adapter whose further units are never switched on
    padded = tiny_model("bert")
    hfadapt.attach(padded, hfadapt.Pfeiffer(size=8), names=["narrow", "wide"])
    hfadapt.add_fusion(padded, ("narrow", "wide"), "static")
    small, large = model.state_dict(), padded.state_dict()
    for key, tensor in small.items():
        large[key].zero_()[tuple(slice(n) for n in tensor.shape)] = tensor
    torch.testing.assert_close(output(padded, inputs), output(model, inputs), rtol=0, atol=1e-5)
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, tiny_model("bert"))
    with hfadapt.active(again, hfadapt.Fuse("narrow", "wide")):
        assert torch.equal(output(again, inputs), output(model, inputs))


def test_a_fusion_goes_with_its_adapters():
    model, inputs = fused(names=("a", "b"))
    hfadapt.detach(model, "b")
    assert not fusion_layers(model)
    output(model, inputs, task_ids="a")
    hfadapt.detach(model)
    assert not any("hfadapt" in key for key in model.state_dict())
