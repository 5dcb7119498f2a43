"""``generate`` under Parallel: every prompt through every child, children outermost, as each child alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache

import hfadapt
from hfadapt.errors import RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import CACHE, skip_without_attention_functions

METHODS = {
    "lora": hfadapt.LoRA(3, 6.0),
    "pal": hfadapt.PAL(8, num_heads=2, init="normal"),
    "mam-high": (
        hfadapt.PrefixConfig(3, mlp_size=8, layers=(1,)),
        hfadapt.ParallelConfig(4, layers=(1,)),
    ),
}
OPTIONS = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
NAMES = ("one", "two", "three")


def generator(model_type, method):
    """A float64 model with three random adapters, and left-padded prompts (right for encoder-decoder models)."""
    if method == "mam-high":
        skip_without_attention_functions(model_type)
    seq2seq = model_type in ("t5", "bart")
    head = "seq2seq-lm" if seq2seq else "causal-lm"
    model = tiny_model(model_type, head).double()
    model.generation_config.pad_token_id = 0
    hfadapt.attach(model, METHODS[method], names=NAMES, seed=0)
    randomize(model)
    with torch.no_grad():
        for name in NAMES:
            for parameter in hfadapt.parameters_of(model, name).values():
                parameter.mul_(4.0)
    inputs = tiny_inputs(model_type, head, batch=2, padding="right" if seq2seq else "left")
    inputs.pop("decoder_input_ids", None)
    return model, inputs


def each_alone(model, inputs, children=NAMES, **options):
    out = []
    for child in children:
        with hfadapt.active(model, child):
            out.append(model.generate(**inputs, **{**OPTIONS, **options}))
    return torch.cat(out)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "t5", "bart"])
def test_greedy_and_beams_with_and_without_a_cache_are_those_of_each_child(model_type, method):
    model, inputs = generator(model_type, method)
    for beams in (1, 3):
        want = each_alone(model, inputs, num_beams=beams)
        assert not torch.equal(want[:2], want[2:4])
        with hfadapt.active(model, hfadapt.Parallel(*NAMES)):
            for use_cache in (True, False):
                got = model.generate(**inputs, **OPTIONS, num_beams=beams, use_cache=use_cache)
                assert torch.equal(got, want)


@pytest.mark.parametrize("model_type", ["gpt2", "bart"])
def test_sampling_several_sequences_a_prompt_is_that_of_repeated_prompts(model_type):
    model, inputs = generator(model_type, "lora")
    options = {**OPTIONS, "do_sample": True, "num_return_sequences": 2}
    torch.manual_seed(0)
    repeated = {key: value.repeat(3, 1) for key, value in inputs.items()}
    want = model.generate(**repeated, **options, task_ids=[name for name in NAMES for _ in range(2)])
    torch.manual_seed(0)
    with hfadapt.active(model, hfadapt.Parallel(*NAMES)):
        got = model.generate(**inputs, **options)
    assert got.shape[0] == 12 and torch.equal(got, want)


@pytest.mark.parametrize("beams", [1, 2])
def test_speech_and_states_of_an_encoder_are_repeated_too(beams):
    model = tiny_model("whisper", "speech-seq2seq").double()
    model.generation_config.pad_token_id = 0
    hfadapt.attach(model, METHODS["mam-high"], names=NAMES, seed=0)
    randomize(model)
    sound = {"input_features": tiny_inputs("whisper", "speech-seq2seq", batch=2)["input_features"].double()}
    want = each_alone(model, sound, num_beams=beams)
    with hfadapt.active(model, hfadapt.Parallel(*NAMES)):
        assert torch.equal(model.generate(**sound, **OPTIONS, num_beams=beams), want)
    model, inputs = generator("bart", "lora")
    hfadapt.detach(model)
    hfadapt.attach(model, hfadapt.LoRA(3, stack="decoder"), names=NAMES, seed=0)
    randomize(model)
    with torch.no_grad():
        states = model.get_encoder()(**inputs, task_ids="one")
    want = each_alone(model, inputs, num_beams=beams)
    with hfadapt.active(model, hfadapt.Parallel(*NAMES)):
        given = {"encoder_outputs": states, "attention_mask": inputs["attention_mask"]}
        assert torch.equal(model.generate(**given, **OPTIONS, num_beams=beams), want)


def test_children_may_be_stacks_averages_and_fusions():
    model, inputs = generator("llama", "lora")
    hfadapt.add_fusion(model, ("one", "two"))
    children = (hfadapt.Stack("one", "two"), hfadapt.Average("one", "three"), hfadapt.Fuse("one", "two"))
    want = each_alone(model, inputs, children)
    with hfadapt.active(model, hfadapt.Parallel(*children)):
        assert torch.equal(model.generate(**inputs, **OPTIONS), want)


@pytest.mark.parametrize("model_type", ["gpt2", "bart"])
@pytest.mark.parametrize("empty", [True, False])
@torch.no_grad()
def test_steps_by_hand_go_on_from_a_cache_with_every_childs_rows(model_type, empty):
    """The first call makes all rows, for it is asked for a cache; later calls may give each child's token, or one."""
    model, inputs = generator(model_type, "mam-high")
    start = {"decoder_input_ids": inputs["input_ids"][:, :3]} if model_type == "bart" else {}
    more = torch.tensor([[5], [7]])

    def both(repeat: bool):
        tokens = more.repeat(len(NAMES), 1) if repeat else more
        asked = {CACHE: DynamicCache()} if empty and model_type == "gpt2" else {"use_cache": True}
        first = model(**inputs, **start, **asked)
        mask = inputs["attention_mask"]
        if model_type == "bart":
            states = {"encoder_outputs": (first.encoder_last_hidden_state,), "attention_mask": mask}
            return first.logits, model(decoder_input_ids=tokens, **{CACHE: first[CACHE]}, **states).logits
        # positions follow the mask, as in generate
        mask = torch.cat([mask, torch.ones_like(more)], 1)
        positions = mask.sum(1, keepdim=True) - 1
        mask, positions = (t.repeat(tokens.shape[0] // 2, 1) for t in (mask, positions))
        step = {"attention_mask": mask, "position_ids": positions, CACHE: first[CACHE]}
        return first.logits, model(input_ids=tokens, **step).logits

    alone = []
    for name in NAMES:
        with hfadapt.active(model, name):
            alone.append(both(False))
    want = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    with hfadapt.active(model, hfadapt.Parallel(*NAMES)):
        for repeat in (True, False):
            for got, expected in zip(both(repeat), want, strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_cache_of_other_rows_is_refused_with_what_to_do():
    model, inputs = generator("gpt2", "mam-high")
    token = {"input_ids": torch.ones(2, 1, dtype=torch.long)}
    with hfadapt.active(model, "one"):
        narrow = model(**inputs, use_cache=True)[CACHE]
    with hfadapt.active(model, hfadapt.Parallel(*NAMES)):
        grown = model(**inputs)[CACHE]  # rows of two sizes: its lowest layer is shared by the children
        for cache in (narrow, grown):
            with pytest.raises(RoutingError, match="use_cache=True"):
                model(**token, **{CACHE: cache})
        with pytest.raises(RoutingError, match=r"task_ids=\[") as refused:
            model.generate(**inputs, **{CACHE: narrow})
        assert "key-value cache" in str(refused.value)
        with pytest.raises(RoutingError, match="bos_token_id"):
            model.generate(max_new_tokens=2)


def test_generate_takes_task_ids_as_forward_does():
    model, inputs = generator("gpt2", "lora")
    alone = each_alone(model, inputs, ("two", "one"))
    want = torch.stack([alone[0], alone[3]])
    for ids in (["two", "one"], [1, 0], torch.tensor([1, 0])):
        got = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **OPTIONS, task_ids=ids)
        assert torch.equal(got, want)
    with hfadapt.active(model, hfadapt.Parallel(*NAMES)):
        assert torch.equal(model.generate(**inputs, **OPTIONS, task_ids="two"), alone[:2])
    with pytest.raises(RoutingError, match="out of range"):
        model.generate(**inputs, **OPTIONS, task_ids=torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="task_idz"):
        model.generate(**inputs, **OPTIONS, task_idz="one")


def test_copies_generate_on_their_own_and_detach_gives_the_stock_method_back():
    model, inputs = generator("gpt2", "lora")
    want = model.generate(**inputs, **OPTIONS, task_ids="one")
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    randomize(model, seed=9)
    for one in copies:
        assert torch.equal(one.generate(**inputs, **OPTIONS, task_ids="one"), want)
    hfadapt.detach(model)
    assert "generate" not in model.__dict__
    with pytest.raises(ValueError, match="task_ids"):
        model.generate(**inputs, **OPTIONS, task_ids="one")
