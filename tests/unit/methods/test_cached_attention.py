"""Deltas with attention of their own (PALs, layers on top) generate with a key-value cache what they do without one."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import hfadapt
from hfadapt.errors import RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt_kernels import row_linear
from tests.unit.releases import CACHE

METHODS = {
    "pal": hfadapt.PAL(8, num_heads=2, init="normal"),
    "pal-serial": hfadapt.PAL(8, num_heads=2, init="normal", position="serial", share=False),
    "top_attention": hfadapt.TopAttention(8, 2, num_heads=2),
    "top_layer": hfadapt.TopLayer(),
}
DECODERS = ("gpt2", "llama", "opt")
SEQ2SEQ = ("t5", "bart")
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def generator(model_type, method, implementation=None, **changes):
    """A float64 model with two random adapters, and left-padded inputs (right for encoder-decoder models)."""
    head = "causal-lm" if model_type not in SEQ2SEQ else "seq2seq-lm"
    model = tiny_model(model_type, head, attn_implementation=implementation, **changes).double()
    model.generation_config.pad_token_id = 0
    hfadapt.attach(model, METHODS[method], names=["one", "two"], seed=0)
    randomize(model)
    inputs = tiny_inputs(model_type, head, padding="right" if model_type in SEQ2SEQ else "left")
    inputs.pop("decoder_input_ids", None)
    return model, inputs


def written(model, inputs, **options):
    """What follows the prompt."""
    out = model.generate(**inputs, **{**OPTIONS, **options})
    return out if model.config.is_encoder_decoder else out[:, inputs["input_ids"].shape[1] :]


def steps(model, inputs, **options):
    out = model.generate(**inputs, **OPTIONS, **options, return_dict_in_generate=True, output_logits=True)
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", DECODERS + SEQ2SEQ)
def test_greedy_beams_rows_and_left_padding_are_as_without_a_cache(model_type, method):
    model, inputs = generator(model_type, method)
    hfadapt.activate(model, ["two", "one", "two"])
    (tokens, logits), (again, others) = steps(model, inputs), steps(model, inputs, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, others, rtol=1e-5, atol=1e-5)
    beams = written(model, inputs, num_beams=3)
    assert torch.equal(beams, written(model, inputs, num_beams=3, use_cache=False))
    with hfadapt.active(model, "one"):
        assert torch.equal(written(model, inputs, num_beams=3)[1], beams[1])
        if model_type in DECODERS:
            row = {key: value[1:2, inputs["attention_mask"][1].bool()] for key, value in inputs.items()}
            assert torch.equal(written(model, row, num_beams=3)[0], beams[1])
    with hfadapt.active(model, None):
        assert (steps(model, inputs)[1][0] - logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["pal", "top_layer"])
@pytest.mark.parametrize("model_type", ["gpt2", "t5"])
def test_sampling_several_sequences_a_prompt(model_type, method):
    model, inputs = generator(model_type, method)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        with hfadapt.active(model, ["two", "one", "two"]):
            found.append(written(model, inputs, do_sample=True, num_return_sequences=2, use_cache=use_cache))
    assert found[0].shape[0] == 6 and torch.equal(*found)


@pytest.mark.parametrize("method", ["pal", "top_layer"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_static_cache(method, implementation):
    """Its masks have places for tokens to come, and four dimensions."""
    model, inputs = generator("llama", method, implementation)
    hfadapt.activate(model, ["two", "one", "two"])
    want = written(model, inputs)
    assert torch.equal(written(model, inputs, cache_implementation="static", disable_compile=True), want)


@torch.no_grad()
def test_robust_depths_need_the_same_layers_at_every_step():
    """A layer that was dropped when the cache was filled has read nothing."""
    model, inputs = generator("gpt2", "pal")
    hfadapt.activate(model, "one")
    hfadapt.set_adapter_drop(model, 1)
    want = written(model, inputs, use_cache=False)
    assert torch.equal(written(model, inputs), want)


@torch.no_grad()
def test_a_step_projects_its_own_token_only(monkeypatch):
    model, inputs = generator("gpt2", "pal")
    hfadapt.activate(model, "one")
    tokens = []

    def project(x, *weights):
        tokens.append(x.shape[1])
        return row_linear(x, *weights)

    monkeypatch.setattr("hfadapt_plugins.methods.pal.delta.row_linear", project)
    written(model, inputs)
    prompt = inputs["input_ids"].shape[1]
    assert tokens == 2 * 5 * [prompt] + 5 * 2 * 5 * [1]  # two layers, five projections; five further tokens


@pytest.mark.parametrize("method", ["pal", "top_attention"])
@torch.no_grad()
def test_adapters_of_other_widths_share_a_batch_and_its_cache(method):
    wide = {"pal": hfadapt.PAL(12, num_heads=2, init="normal"), "top_attention": hfadapt.TopAttention(12, 3, 2)}
    model, inputs = generator("llama", method)
    hfadapt.attach(model, wide[method], name="wide", seed=1)
    randomize(model)
    hfadapt.compose(model, "both", hfadapt.Stack("one", "wide"))
    hfadapt.compose(model, "mean", hfadapt.Average("two", "wide"))
    for rows in (["wide", "one", "wide"], ["both", "mean", "one"]):
        with hfadapt.active(model, rows):
            want = written(model, inputs, use_cache=False, num_beams=2)
            assert torch.equal(written(model, inputs, num_beams=2), want)


def stepped(model, inputs, cache, tokens):
    """Logits of ``tokens`` behind the prompt, one call a token."""
    mask, out = inputs["attention_mask"], []
    for token in tokens.unbind(1):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = mask.sum(1, keepdim=True) - 1
        step = model(token[:, None], attention_mask=mask, position_ids=positions, **{CACHE: cache})
        out.append(step.logits)
    return torch.cat(out, 1)


def prompted(model, inputs, cache):
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    model(**inputs, position_ids=positions, **{CACHE: cache})
    return cache


@pytest.mark.parametrize("method", ["pal", "top_layer"])
@torch.no_grad()
def test_a_cache_is_cut_copied_and_emptied_with_what_belongs_to_it(method):
    model, inputs = generator("llama", method)
    hfadapt.activate(model, ["two", "one", "two"])
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    want = stepped(model, inputs, prompted(model, inputs, DynamicCache()), tokens)
    cache = prompted(model, inputs, DynamicCache())
    other = copy.deepcopy(cache)
    stepped(model, inputs, cache, tokens.flip(1))
    cache.crop(-3)
    held = cache._hfadapt_histories
    assert held and {tensor.shape[1] for tensor in held.values()} == {inputs["input_ids"].shape[1]}
    for one in (cache, other):
        torch.testing.assert_close(stepped(model, inputs, one, tokens), want, rtol=0, atol=1e-12)
    cache.reset()
    assert not held
    if cache.get_seq_length() == 0:  # older releases of transformers keep the length of a cache that is reset
        again = stepped(model, inputs, prompted(model, inputs, cache), tokens)
        torch.testing.assert_close(again, want, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_fixed_cache_of_sliding_windows_is_refused():
    model, inputs = generator("mistral", "pal", sliding_window=4)
    with hfadapt.active(model, "one"), pytest.raises(RoutingError, match="forgets"):
        written(model, inputs, cache_implementation="static", disable_compile=True)


@pytest.mark.parametrize(("method", "kind"), [("pal", "static"), ("pal", "dynamic"), ("top_layer", "static")])
@torch.no_grad()
def test_steps_compile_whole(method, kind):
    model, inputs = generator("llama", method, num_hidden_layers=1)
    hfadapt.activate(model, ["two", "one", "two"])
    tokens = torch.tensor([[5], [8], [11]])

    def empty():
        return StaticCache(model.config, max_cache_len=12) if kind == "static" else DynamicCache()

    want = stepped(model, inputs, prompted(model, inputs, DynamicCache()), tokens)
    cache = prompted(model, inputs, empty())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(stepped(compiled, inputs, cache, tokens), want, rtol=0, atol=1e-12)
    torch._dynamo.reset()
