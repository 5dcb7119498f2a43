"""LoRA: targets, fused projections, scales, merging."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.errors import AttachError, ConfigError
from hfadapt.runtime.attachment import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model


def adapted(model_type, method, name="default", head=None):
    model = tiny_model(model_type, head).double()
    hfadapt.attach(model, method, name, seed=0)
    randomize(model)
    return model, tiny_inputs(model_type, head, padding="right")


def leaves(model):
    return sorted({delta.site.leaf for _, delta in deltas_of(model)})


def test_roles_and_module_names_mean_the_same_linears():
    by_role = leaves(adapted("bart", hfadapt.LoRA(2, target_modules=("query", "ffn_out")))[0])
    by_name = leaves(adapted("bart", hfadapt.LoRA(2, target_modules=("q_proj", "fc2")))[0])
    assert by_role == by_name
    assert any("encoder_attn" in leaf for leaf in by_role)


def test_one_of_two_attentions():
    cross = leaves(adapted("t5", hfadapt.LoRA(2, target_modules=("cross_value",)))[0])
    assert cross and all("EncDecAttention.v" in leaf for leaf in cross)
    own = leaves(adapted("t5", hfadapt.LoRA(2, target_modules=("self_value",)))[0])
    assert own and all("SelfAttention.v" in leaf for leaf in own)


def test_all_linear_and_a_path():
    model, _ = adapted("bert", hfadapt.LoRA(2, target_modules="all-linear"))
    assert len(leaves(model)) == 2 * 6
    model, _ = adapted("bert", hfadapt.LoRA(2, target_modules=("attention.self.query", "pooler.dense")))
    assert leaves(model) == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.1.attention.self.query",
        "pooler.dense",
    ]


@pytest.mark.parametrize("targets", [("quary",), ("query", "quary")], ids=["none", "part"])
def test_a_name_that_matches_nothing_is_refused_with_what_is_there(targets):
    with pytest.raises(AttachError, match="matched nothing for 'quary'.*query.*Did you mean"):
        hfadapt.attach(tiny_model("bert"), hfadapt.LoRA(2, target_modules=targets))


def test_a_fused_linear_and_its_slice_are_refused_together():
    with pytest.raises(AttachError, match="both named"):
        hfadapt.attach(tiny_model("gpt2"), hfadapt.LoRA(2, target_modules=("query", "c_attn")))


@torch.no_grad()
def test_slices_of_a_fused_projection_change_only_themselves():
    model, inputs = adapted("gpt2", hfadapt.LoRA(2, target_modules=("key",)))
    leaf = model.get_submodule("h.0.attn.c_attn")
    seen = []
    handle = leaf.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    model(**inputs)
    with hfadapt.active(model, None):
        model(**inputs)
    handle.remove()
    changed = (seen[0] - seen[1]).abs().amax((0, 1))
    width = changed.shape[0] // 3
    assert changed[width : 2 * width].min() > 0
    assert changed[:width].max() == 0 and changed[2 * width :].max() == 0


@torch.no_grad()
def test_scale_is_alpha_over_rank_or_its_root():
    assert hfadapt.LoRA(4, 8.0).scale == 2.0
    assert hfadapt.LoRA(4, 8.0, use_rslora=True).scale == 4.0
    one, inputs = adapted("bert", hfadapt.LoRA(4, 8.0))
    two, _ = adapted("bert", hfadapt.LoRA(4, 2.0))
    for p in (p for k, p in hfadapt.parameters_of(two, "default").items() if k.endswith("lora_b")):
        p.mul_(4.0)
    torch.testing.assert_close(one(**inputs)[0], two(**inputs)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5", "bart", "opt", "modernbert", "vit"])
@pytest.mark.parametrize("targets", ["all-linear", ("query", "value")], ids=["all", "qv"])
@torch.no_grad()
def test_merged_equals_adapted_and_unmerging_restores_every_bit(model_type, targets):
    model, inputs = adapted(model_type, hfadapt.LoRA(3, target_modules=targets))
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    want = model(**inputs)[0]
    merged = hfadapt.merge(model)
    assert not any("hfadapt" in key for key in model.state_dict())
    tolerance = 1e-4 if model_type in ("llama", "t5", "modernbert") else 1e-9
    torch.testing.assert_close(model(**inputs)[0], want, rtol=tolerance, atol=tolerance)
    merged.unmerge()
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], v) for k, v in before.items())
    assert torch.equal(model(**inputs)[0], want)


def test_merging_what_cannot_be_merged_is_refused():
    model, _ = adapted("bert", "pfeiffer")
    with pytest.raises(AttachError, match="bottleneck cannot be merged"):
        hfadapt.merge(model)
    model, _ = adapted("bert", hfadapt.LoRA(2), "a")
    hfadapt.attach(model, "lora", "b")
    with pytest.raises(AttachError, match="other adapters are attached"):
        hfadapt.merge(model, "a")
    with pytest.raises(AttachError, match="none is named"):
        hfadapt.merge(model)
    model, _ = adapted("albert", hfadapt.LoRA(2))
    with pytest.raises(AttachError, match="several depths"):
        hfadapt.merge(model)
    model, _ = adapted("bert", hfadapt.LoRA(2, gate="mean"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(AttachError, match="gate"):
        hfadapt.merge(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model, _ = adapted("gpt2", hfadapt.LoRA(2, target_modules=("lm_head",)), head="causal-lm")
    with pytest.raises(AttachError, match="tied"):
        hfadapt.merge(model)


def test_merge_without_a_copy_cannot_be_undone():
    model, _ = adapted("bert", hfadapt.LoRA(2))
    merged = hfadapt.merge(model, keep_original=False)
    with pytest.raises(AttachError, match="not kept"):
        merged.unmerge()


@pytest.mark.parametrize(
    "fields",
    [{"r": 0}, {"lora_alpha": -1}, {"dropout": 1.0}, {"target_modules": ()}, {"gate": "yes"}, {"init": "zeros"}],
    ids=str,
)
def test_bad_values_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        hfadapt.LoRA(**fields)


@torch.no_grad()
def test_the_mean_gate_ignores_padding():
    model, inputs = adapted("bert", hfadapt.LoRA(2, gate="mean"))
    longer = {k: torch.nn.functional.pad(v, (0, 3)) for k, v in inputs.items()}
    length = inputs["input_ids"].shape[1]
    torch.testing.assert_close(model(**longer)[0][:, :length], model(**inputs)[0], rtol=1e-9, atol=1e-9)


def test_two_configs_of_one_adapter_at_one_place_are_refused():
    with pytest.raises(AttachError, match="want the same place"):
        hfadapt.attach(tiny_model("bert"), (hfadapt.LoRA(2), hfadapt.LoRA(2)))
