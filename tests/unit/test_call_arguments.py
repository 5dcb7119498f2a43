"""Arguments of stock models that hooks read: the cache by its type, the others by name and by position."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, GPT2LMHeadModel

import hfadapt
from hfadapt.errors import RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import CACHE, checkpoint_activations

PAL = hfadapt.PAL(8, num_heads=2, init="normal")
KEEP_STATE = {
    "pal": PAL,
    "pal-serial": hfadapt.PAL(8, num_heads=2, init="normal", position="serial", share=False),
    "top_attention": hfadapt.TopAttention(8, 2, num_heads=2),
    "top_layer": hfadapt.TopLayer(),
    "unipelt": hfadapt.LoRA(2, gate="mean"),
}


def adapted(method, model_type="gpt2", head="causal-lm", **changes):
    model = tiny_model(model_type, head, **changes).double()
    hfadapt.attach(model, method, seed=0)
    randomize(model)
    return model


class Renamed(GPT2LMHeadModel):
    """A model of a release in which the cache has yet another name."""

    def forward(self, input_ids, memory=None, attention_mask=None, **kwargs):
        return super().forward(input_ids, attention_mask=attention_mask, **{CACHE: memory}, **kwargs)


class Wrapped:
    """A cache of another library: it does what transformers' does and is not of its type."""

    def __init__(self) -> None:
        self.inner = DynamicCache()

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("given", ["by its name", "by position", "under another name"])
@pytest.mark.parametrize("method", ["pal", "pal-serial", "top_attention", "top_layer"])
@torch.no_grad()
def test_the_cache_is_found_however_it_is_given(method, given):
    model = adapted(KEEP_STATE[method])
    if given == "under another name":
        model.__class__ = Renamed
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    want, cache = model(ids).logits, DynamicCache()
    got = []
    for part in ids.split(2, 1):
        named = {"by its name": CACHE, "under another name": "memory"}.get(given)
        got.append(model(part, cache) if named is None else model(part, **{named: cache}))
    torch.testing.assert_close(torch.cat([one.logits for one in got], 1), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sign", ["argument", "mask", "mask of four axes", "output"])
@pytest.mark.parametrize("method", KEEP_STATE)
@torch.no_grad()
def test_a_step_whose_cache_is_not_recognised_is_an_error(method, sign, monkeypatch):
    model, cache = adapted(KEEP_STATE[method]), Wrapped()
    if sign != "argument":  # a name and a type that say nothing: the mask shows it, or else what the model returns
        monkeypatch.setattr("hfadapt.runtime.call.Call.other_past", "")
        monkeypatch.setattr("hfadapt.runtime.call.cache_in", lambda *values: None)
        cache = DynamicCache()
        model(torch.tensor([[5, 6, 7, 8]]), **{CACHE: cache})
    masks = {"mask": torch.ones(1, 5), "mask of four axes": torch.ones(1, 1, 1, 5, dtype=torch.bool)}
    given = {"attention_mask": masks[sign]} if sign in masks else {}
    with pytest.raises(RoutingError, match="was not given the key-value cache"):
        model(torch.tensor([[9]]), **{CACHE: cache}, **given)
    assert hfadapt.routing.current() is None


def test_a_cache_under_parallel_is_refused_by_generate_under_any_name():
    model = tiny_model("gpt2", "causal-lm")
    hfadapt.attach(model, hfadapt.LoRA(2), names=["one", "two"])
    with hfadapt.active(model, hfadapt.Parallel("one", "two")), pytest.raises(RoutingError, match="memory"):
        model.generate(torch.tensor([[5, 6]]), memory=DynamicCache(), max_new_tokens=2)


@torch.no_grad()
def test_a_mask_by_position_is_the_mask_by_name():
    """A gate averages over real tokens, and attention inside a delta sees no padding."""
    for method in (hfadapt.LoRA(2, gate="mean"), PAL):
        model, inputs = adapted(method, "bert", None), tiny_inputs("bert", padding="right")
        real = inputs["attention_mask"].bool()
        by_name = model(inputs["input_ids"], attention_mask=inputs["attention_mask"])[0]
        by_position = model(inputs["input_ids"], inputs["attention_mask"])[0]
        assert torch.equal(by_name[real], by_position[real])
        assert not torch.allclose(by_name[real], model(inputs["input_ids"])[0][real])


def test_labels_by_position_bring_the_penalty_into_the_loss_and_grow_with_the_batch():
    model, inputs = tiny_model("bert", "sequence-classification").double().eval(), tiny_inputs("bert", batch=2)
    hfadapt.attach(model, hfadapt.Bottleneck(reduction_factor=4), names=["one", "two"], seed=0)
    randomize(model)
    labels, ids = torch.tensor([0, 1]), inputs["input_ids"]
    with hfadapt.active(model, hfadapt.Parallel("one", "two")):
        losses = model(ids, labels=labels).loss, model(ids, None, None, None, None, labels).loss
    assert torch.equal(*losses)
    hfadapt.add_fusion(model, ("one", "two"))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with hfadapt.active(model, hfadapt.Fuse("one", "two")):
        losses = model(ids, labels=labels).loss, model(ids, None, None, None, None, labels).loss
    assert torch.equal(*losses)


@pytest.mark.parametrize("given", ["argument", "config"])
@torch.no_grad()
def test_attention_weights_are_returned_where_a_call_or_the_config_asks(given):
    model, inputs = tiny_model("bert", attn_implementation="eager"), tiny_inputs("bert")
    want = [one.shape[-2] for one in model(**inputs, output_attentions=True).attentions]
    model.config.output_attentions = given == "config"
    hfadapt.attach(model, hfadapt.PrefixConfig(3, "flat"))
    asked = {"output_attentions": True} if given == "argument" else {}
    found = model(**inputs, **asked).attentions
    assert [one.shape[-2] for one in found] == want and all(one is not None for one in found)


def test_a_layer_that_checkpoints_by_itself_is_refused():
    """Its second run would be without adapters, and the gradients silently wrong."""
    model = adapted(hfadapt.LoRA(2)).train()
    checkpoint_activations(model, use_reentrant=False)
    for module in model.modules():
        module.__dict__.pop("_gradient_checkpointing_func", None)
    with pytest.raises(RoutingError, match="run this layer again"):
        model(torch.tensor([[5, 6]]))


@torch.no_grad()
def test_feed_forward_chunks_are_switched_off_where_a_delta_reads_the_whole_layer():
    whole, chunked = (tiny_model("bert", chunk_size_feed_forward=size).double() for size in (0, 2))
    for model in (whole, chunked):
        hfadapt.attach(model, hfadapt.ParallelConfig(4), seed=0)
        randomize(model)
    inputs = tiny_inputs("bert")
    torch.testing.assert_close(chunked(**inputs)[0], whole(**inputs)[0], rtol=0, atol=1e-12)
    hfadapt.detach(chunked)
    assert {layer.chunk_size_feed_forward for layer in chunked.encoder.layer} == {2}


def test_every_name_in_the_decisions_has_a_test_that_exists():
    root = Path(hfadapt.__file__).parents[1]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (root / "docs/decisions.md").read_text("utf-8"))
    assert len(named) >= 16
    missing = [(path, name) for path, name in named if f"def {name}(" not in (root / path).read_text("utf-8")]
    assert not missing
