"""What happens to a model after adapters were attached is noticed where it would leave an adapter without effect."""

from __future__ import annotations

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt.errors import AttachError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import skip_without_attention_functions

PREFIX = hfadapt.PrefixConfig(3, "flat")
GONE = "no longer in the model"


def adapted(model_type="bert", method=None, head=None, names=("default",), **options):
    model = tiny_model(model_type, head, **options)
    hfadapt.attach(model, method or hfadapt.LoRA(2), names=names, seed=0)
    randomize(model)
    return model


def output(model, model_type="bert", **more):
    return model(**tiny_inputs(model_type, padding="right"), **more)[0]


def by_method(model, implementation):
    model.set_attn_implementation(implementation)


def by_config(model, implementation):
    model.config._attn_implementation = implementation


@pytest.mark.parametrize("switch", [by_method, by_config])
@pytest.mark.parametrize("model_type", ["bert", "llama", "t5"])
@torch.no_grad()
def test_prefixes_follow_a_switch_of_the_attention_implementation(model_type, switch):
    skip_without_attention_functions(model_type)
    model = adapted(model_type, PREFIX, attn_implementation="sdpa")
    want = output(model, model_type)
    with hfadapt.active(model, None):
        assert not torch.allclose(output(model, model_type), want, atol=1e-3)
    for implementation in ("eager", "sdpa", "eager"):
        switch(model, implementation)
        torch.testing.assert_close(output(model, model_type), want, rtol=0, atol=1e-4)
        assert model.config._attn_implementation == f"hfadapt_{implementation}"
    hfadapt.detach(model)
    assert model.config._attn_implementation == "eager", "detach leaves what the user chose"


@torch.no_grad()
def test_a_choice_made_right_before_detach_stays():
    model = adapted(method=PREFIX, attn_implementation="sdpa")
    model.set_attn_implementation("eager")
    hfadapt.detach(model)
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
def test_the_attention_of_one_part_alone():
    skip_without_attention_functions("t5")
    model = adapted("t5", PREFIX, attn_implementation="sdpa")
    want = output(model, "t5")
    model.decoder.config._attn_implementation = "eager"
    torch.testing.assert_close(output(model, "t5"), want, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_implementation_without_prefixes_is_named_and_others_go_on():
    model = adapted(method=PREFIX, names=["prefix"], attn_implementation="sdpa")
    hfadapt.attach(model, hfadapt.LoRA(2), "lora", seed=0)
    want = {name: output(model, task_ids=name) for name in ("prefix", "lora")}
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(AttachError, match="takes no prefixes.*got: flex_attention"):
        output(model, task_ids="prefix")
    model.config._attn_implementation = "sdpa"
    for name, one in want.items():
        assert torch.equal(output(model, task_ids=name), one)


def new_query(model):
    model.encoder.layer[1].attention.self.query = nn.Linear(32, 32)


def cut_layers(model):
    model.encoder.layer = model.encoder.layer[:1]


def delete_layer(model):
    del model.encoder.layer[1]


def new_encoder(model):
    model.encoder = copy.deepcopy(tiny_model("bert")).encoder


def without_slot(model):
    del model.encoder.layer[1].attention.self.value.hfadapt


def cleared_hooks(model):
    model.encoder.layer[1].attention.self.value._forward_hooks.clear()


def new_hooks(model):
    model.encoder.layer[1].attention.self.value._forward_hooks = type(nn.Linear(1, 1)._forward_hooks)()


CHANGES = [new_query, cut_layers, delete_layer, new_encoder, without_slot, cleared_hooks, new_hooks]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_slot_that_is_gone_is_named_at_the_next_call(change, tmp_path):
    model = adapted()
    output(model)
    change(model)
    for _ in range(2):
        with pytest.raises(AttachError, match=rf"{GONE}.*encoder\.layer\.\d"):
            output(model)
    with pytest.raises(AttachError, match=GONE):
        hfadapt.save(model, tmp_path / "saved")
    with pytest.raises(AttachError, match=GONE):
        hfadapt.attach(model, hfadapt.LHUC(), "second")
    with hfadapt.active(model, None):
        output(model)  # the base alone needs no slot
    hfadapt.detach(model)
    output(model)
    hfadapt.attach(model, hfadapt.LHUC())
    output(model)


@pytest.mark.parametrize("method", [hfadapt.LoRA(2, target_modules=("lm_head",)), hfadapt.Invertible()], ids=str)
@torch.no_grad()
def test_a_head_that_was_resized(method):
    model = adapted("gpt2", method, "causal-lm", tie_word_embeddings=False)
    model.resize_token_embeddings(120)
    with pytest.raises(AttachError, match=rf"{GONE}.*lm_head \(a new Linear stands there\)"):
        output(model, "gpt2")


@torch.no_grad()
def test_resized_embeddings_that_no_adapter_sits_on():
    model = adapted("gpt2", hfadapt.LoRA(2), "causal-lm")
    want = output(model, "gpt2")
    model.resize_token_embeddings(120)
    assert torch.equal(output(model, "gpt2")[..., :99], want)


@torch.no_grad()
def test_adapters_that_have_nothing_there_go_on():
    model = adapted(names=["low"], method=hfadapt.LoRA(2, layers=(0,)))
    hfadapt.attach(model, hfadapt.LoRA(2, layers=(1,)), "high", seed=0)
    want = output(model, task_ids="low")
    new_query(model)
    for _ in range(2):
        output(model, task_ids="low")
        for ids in ("high", ["low", "high", "low"]):
            with pytest.raises(AttachError, match=GONE):
                output(model, task_ids=ids)
    hfadapt.detach(model, "high")
    assert output(model).shape == want.shape


def test_a_new_head_of_the_users_is_no_business_of_ours_where_adapters_have_none():
    model = tiny_model("bert", "sequence-classification")
    hfadapt.attach(model, hfadapt.LoRA(2), train_head=False)
    model.classifier = nn.Linear(32, 5)
    logits = output(model)
    assert logits.shape[-1] == 5
    logits.sum().backward()
    assert model.classifier.weight.grad is not None


def new_head(model):
    model.classifier = nn.Linear(32, 5)


def no_head(model):
    model.classifier = nn.Identity()


def deleted_head(model):
    model.classifier = None


@pytest.mark.parametrize("change", [new_head, no_head, deleted_head])
@torch.no_grad()
def test_a_replaced_head_takes_the_adapters_own_along_and_is_named(change, tmp_path):
    model = adapted(head="sequence-classification", names=["own"])
    hfadapt.attach(model, hfadapt.LoRA(2), "without", train_head=False)
    kept = model.classifier
    want = output(model, task_ids="own")
    change(model)
    for ids in ("own", ["own", "without", "without"]):
        with pytest.raises(AttachError, match=rf"{GONE}.*classifier \(.*trained copy of own.*train_head=False"):
            output(model, task_ids=ids)
    with pytest.raises(AttachError, match="trained copy of own"):
        hfadapt.save(model, tmp_path / "saved")
    if change is not deleted_head:
        output(model, task_ids="without")
    model.classifier = kept
    assert torch.equal(output(model, task_ids="own"), want)


@torch.no_grad()
def test_a_replaced_module_of_which_an_adapter_trains_a_copy_is_named():
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.LoRA(2), "own", modules_to_save=["pooler"])
    hfadapt.attach(model, hfadapt.LoRA(2), "without")
    model.pooler.dense = nn.Linear(32, 32)
    with pytest.raises(AttachError, match=r"pooler\.dense \(a new Linear stands there.*trained copy of own"):
        output(model, task_ids="own")
    output(model, task_ids="without")


class Fused:
    """A forward that computes a feed-forward part from its weights and calls no module."""

    def __init__(self, module):
        self.module = module

    def __call__(self, hidden):
        dense = self.module.dense
        return nn.functional.gelu(nn.functional.linear(hidden, dense.weight, dense.bias))


def fused_class_forward(self, hidden):
    return Fused(self)(hidden)


@pytest.mark.parametrize("how", ["instance", "class"])
@torch.no_grad()
def test_a_forward_that_goes_past_a_slot(how, monkeypatch):
    model = adapted(method=hfadapt.LoRA(2, target_modules=("ffn_in",)))
    part = model.encoder.layer[1].intermediate
    if how == "instance":
        part.forward = Fused(part)
    else:
        monkeypatch.setattr(type(part), "forward", fused_class_forward)
    for _ in range(2):
        with pytest.raises(AttachError, match=r"would never run.*encoder\.layer\.\d\.intermediate"):
            output(model)


@torch.no_grad()
def test_a_kernel_in_place_of_the_norm_that_finishes_an_op_runs_behind_the_delta():
    model = adapted(method="low_rank")
    want = output(model)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = types.MethodType(nn.LayerNorm.forward, module)
    torch.testing.assert_close(output(model), want, rtol=1e-5, atol=1e-6)
    hfadapt.detach(model)
    assert not torch.allclose(output(model), want)


class Around(nn.Module):
    """As wrappers of layers do: calls what it holds."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, *args, **kwargs):
        return self.inside(*args, **kwargs)


@torch.no_grad()
def test_wrappers_that_run_what_they_hold_are_no_loss():
    model = adapted()
    want = output(model)
    model.encoder.layer[0] = Around(model.encoder.layer[0])
    part = model.encoder.layer[1].intermediate
    part.forward = types.MethodType(type(part).forward, part)
    for _ in range(2):
        assert torch.equal(output(model), want)


@torch.no_grad()
def test_a_compiled_layer_keeps_its_deltas():
    model = adapted()
    want = output(model)
    for number, layer in enumerate(model.encoder.layer):
        model.encoder.layer[number] = torch.compile(layer, backend="eager")
    torch.testing.assert_close(output(model), want, rtol=0, atol=1e-6)
    torch._dynamo.reset()


@torch.no_grad()
def test_a_quantised_copy_is_refused():
    model = adapted()
    quantise = torch.ao.quantization.quantize_dynamic
    with pytest.warns(DeprecationWarning):
        small = quantise(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(AttachError, match=GONE):
        output(small)
    output(model)


def cast(model):
    model.to(torch.bfloat16).float()


def tie(model):
    model.tie_weights()


def visit(model):
    model.apply(lambda module: None)


def pack(model):
    hfadapt.unpack(hfadapt.pack(model))


@pytest.mark.parametrize("change", [cast, tie, visit, pack])
@pytest.mark.parametrize("method", [hfadapt.LoRA(2), PREFIX, "low_rank", "invertible"], ids=str)
@torch.no_grad()
def test_what_changes_no_module_changes_no_result(change, method):
    model = adapted("gpt2", method, "causal-lm")
    want = output(model, "gpt2")
    change(model)
    torch.testing.assert_close(output(model, "gpt2"), want, rtol=0, atol=0.1 if change is cast else 0)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
@torch.no_grad()
def test_a_copy_watches_over_itself(again):
    model = adapted(method=(PREFIX, hfadapt.LoRA(2)))
    want = output(model)
    copied = again(model)
    assert torch.equal(output(copied), want)
    new_query(copied)
    with pytest.raises(AttachError, match=GONE):
        output(copied)
    assert torch.equal(output(model), want)
    new_query(model)
    with pytest.raises(AttachError, match=GONE):
        output(again(model))


def test_what_the_look_costs():
    """One call, and those of transformers' property on the config, however many slots there are."""
    model = adapted(method=(PREFIX, hfadapt.LoRA(2, target_modules="all-linear")))
    watch = hfadapt.attachment(model).watch
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    watch.holds()
    sys.setprofile(None)
    assert len(watch.modules) > 30 and len(calls) <= 8, calls
