"""Deltas with attention of their own (PALs, layers on top) generate with a key-value cache what they do without one."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

METHODS = {
    "pal": hfadapt.PAL(8, num_heads=2, init="normal"),
    "pal-serial": hfadapt.PAL(8, num_heads=2, init="normal", position="serial", share=False),
    "top_attention": hfadapt.TopAttention(8, 2, num_heads=2),
    "top_layer": hfadapt.TopLayer(),
}
DECODERS = ("gpt2", "llama", "opt")
SEQ2SEQ = ("t5", "bart")
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def generator(model_type, method, implementation=None):
    """A float64 model with two random adapters, and left-padded inputs (right for encoder-decoder models)."""
    head = "causal-lm" if model_type not in SEQ2SEQ else "seq2seq-lm"
    model = tiny_model(model_type, head, attn_implementation=implementation).double()
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
