"""``generate`` with adapters: cache or not, greedy, beams, sampling, left padding, adapters chosen by row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt.errors import RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt_plugins.methods.prefix import PrefixDelta
from tests.unit.releases import CACHE, skip_without_attention_functions

DECODERS = ("gpt2", "llama", "qwen2", "opt")
SEQ2SEQ = ("t5", "bart", "mbart")
METHODS = {
    "lora": hfadapt.LoRA(3, 6.0),
    "bottleneck": hfadapt.Pfeiffer(size=4),
    "prefix": hfadapt.PrefixConfig(3, mlp_size=8),
    "mam": hfadapt.MAM({"num_virtual_tokens": 3, "mlp_size": 8}, {"r": 4}),
}
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def generator(model_type, method, implementation=None, names=("one", "two")):
    """A float64 model with a language-model head, two random adapters, and left-padded inputs (right for seq2seq)."""
    if method not in ("lora", "bottleneck"):
        skip_without_attention_functions(model_type)
    decoder = model_type not in SEQ2SEQ
    head = "causal-lm" if decoder else "seq2seq-lm"
    model = tiny_model(model_type, head, attn_implementation=implementation).double()
    model.generation_config.pad_token_id = 0
    spread(model, METHODS.get(method, method), names)
    inputs = tiny_inputs(model_type, head, padding="left" if decoder else "right")
    inputs.pop("decoder_input_ids", None)
    return model, inputs


def spread(model, method, names):
    """Adapters far enough from the base, and from one another, to write other words."""
    hfadapt.attach(model, method, names=names, seed=0)
    randomize(model)
    with torch.no_grad():
        for name in names:
            for parameter in hfadapt.parameters_of(model, name).values():
                parameter.mul_(5.0)


def ids(model, inputs, **options):
    out = model.generate(**inputs, **{**OPTIONS, **options})
    return out[:, inputs["input_ids"].shape[1] :] if not model.config.is_encoder_decoder else out


def steps(model, inputs, **options):
    """Tokens, and the logits of every step."""
    out = model.generate(**inputs, **OPTIONS, **options, return_dict_in_generate=True, output_logits=True)
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", DECODERS + SEQ2SEQ)
def test_cache_gives_the_same_tokens_as_none(model_type, method):
    model, inputs = generator(model_type, method)
    hfadapt.activate(model, "one")
    (tokens, logits), (again, others) = steps(model, inputs), steps(model, inputs, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, others, rtol=1e-5, atol=1e-5)
    with hfadapt.active(model, None):
        assert (steps(model, inputs)[1][0] - logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", DECODERS + SEQ2SEQ)
def test_beams_with_and_without_cache(model_type, method):
    model, inputs = generator(model_type, method)
    hfadapt.activate(model, "one")
    cached = ids(model, inputs, num_beams=3)
    assert torch.equal(cached, ids(model, inputs, num_beams=3, use_cache=False))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", DECODERS + SEQ2SEQ)
def test_rows_with_adapters_of_their_own_write_what_they_write_alone(model_type, method, beams):
    model, inputs = generator(model_type, method)
    alone = {}
    for name in ("one", "two", None):
        with hfadapt.active(model, name):
            alone[name] = ids(model, inputs, num_beams=beams)
    with hfadapt.active(model, ["two", "one", "two"]):
        mixed = ids(model, inputs, num_beams=beams)
    for row, name in enumerate(("two", "one", "two")):
        assert torch.equal(mixed[row], alone[name][row])


@pytest.mark.parametrize("method", ["prefix", "lora"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "t5", "bart"])
def test_several_sequences_a_prompt_and_sampling(model_type, method):
    model, inputs = generator(model_type, method)
    with hfadapt.active(model, ["two", "one", "two"]):
        torch.manual_seed(0)
        first = ids(model, inputs, do_sample=True, num_return_sequences=2)
        torch.manual_seed(0)
        again = ids(model, inputs, do_sample=True, num_return_sequences=2, use_cache=False)
    assert first.shape[0] == 6
    assert torch.equal(first, again)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", DECODERS)
def test_left_padding_does_not_change_what_is_written(model_type, method):
    model, inputs = generator(model_type, method)
    hfadapt.activate(model, "one")
    padded = ids(model, inputs)
    for row in range(padded.shape[0]):
        real = inputs["attention_mask"][row].bool()
        alone = {k: v[row : row + 1, real] for k, v in inputs.items()}
        assert torch.equal(ids(model, alone)[0], padded[row])


@pytest.mark.parametrize("beams", [1, 3])
def test_speech_is_written_down_with_the_adapter_of_its_row(beams):
    model = tiny_model("whisper", "speech-seq2seq").double()
    model.generation_config.pad_token_id = 0
    spread(model, METHODS["mam"], ("one", "two"))
    sound = tiny_inputs("whisper", "speech-seq2seq")["input_features"].double()
    alone = {}
    for name in ("one", "two"):
        with hfadapt.active(model, name):
            alone[name] = model.generate(sound, **OPTIONS, num_beams=beams)
            assert torch.equal(alone[name], model.generate(sound, **OPTIONS, num_beams=beams, use_cache=False))
    assert not torch.equal(alone["one"], alone["two"])
    with hfadapt.active(model, ["two", "one", "two"]):
        mixed = model.generate(sound, **OPTIONS, num_beams=beams)
    assert torch.equal(mixed, torch.stack([alone[name][row] for row, name in enumerate(("two", "one", "two"))]))


@pytest.mark.parametrize("method", ["prefix", "mam"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_static_cache(model_type, method, implementation):
    model, inputs = generator(model_type, method, implementation)
    hfadapt.activate(model, ["two", "one", "two"])
    want = ids(model, inputs)
    assert torch.equal(ids(model, inputs, cache_implementation="static", disable_compile=True), want)
    whole = {"input_ids": inputs["input_ids"]}
    with hfadapt.active(model, "one"):
        want = ids(model, whole)
        assert torch.equal(ids(model, whole, cache_implementation="static", disable_compile=True), want)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "t5", "bart"])
@torch.no_grad()
def test_the_cache_never_holds_the_prefix(model_type):
    model, inputs = generator(model_type, "prefix", names=("one",))
    given = inputs if model_type in DECODERS else {**inputs, "decoder_input_ids": inputs["input_ids"][:, :4]}
    cache = model(**given, use_cache=True)[CACHE]
    tokens = given.get("decoder_input_ids", given["input_ids"]).shape[1]
    assert cache.get_seq_length() == tokens


class HiddenPrefix(PrefixDelta):
    """A prefix that no query looks at: one more component scores its keys at minus a million."""

    def part(self, call, rows):
        part = super().part(call, rows)
        scaling = call.options.get("scaling")
        call.options["scaling"] = call.query.shape[-1] ** -0.5 if scaling is None else scaling
        call.query = nn.functional.pad(call.query, (0, 1), value=1.0)
        call.key, call.value = (nn.functional.pad(t, (0, 1)) for t in (call.key, call.value))
        part.keys = [nn.functional.pad(k, (0, 1), value=-1e6) for k in part.keys]
        part.values = [nn.functional.pad(v, (0, 1)) for v in part.values]
        return part

    def forward(self, call, rows, proceed):
        out, weights = super().forward(call, rows, proceed)
        return out[..., :-1], weights


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", DECODERS + SEQ2SEQ)
@torch.no_grad()
def test_a_prefix_that_no_query_sees_is_the_base(model_type, implementation):
    """Positions, masks and T5's relative bias of the real keys stay as they were, cached or not."""
    model, inputs = generator(model_type, hfadapt.PrefixConfig(3, "flat"), implementation, names=("one",))
    model.float()  # stock eager attention gives NaN for left padding in float64
    with hfadapt.active(model, None):
        (_, base) = steps(model, inputs)
    for module in model.modules():
        if isinstance(module, PrefixDelta):
            module.__class__ = HiddenPrefix
    for use_cache in (True, False):
        torch.testing.assert_close(steps(model, inputs, use_cache=use_cache)[1], base, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_draft_by_the_models_own_first_layers_uses_the_prompts_adapter(method):
    model, inputs = generator("llama", method)
    one = {key: value[:1] for key, value in inputs.items()}
    for name in ("one", "two"):
        found = ids(model, one, task_ids=[name], assistant_early_exit=1)
        assert torch.equal(found, ids(model, one, task_ids=[name]))
    with hfadapt.active(model, "two"):
        assert torch.equal(ids(model, one, assistant_early_exit=1), ids(model, one))


def test_a_call_inside_of_another_on_other_prompts_says_its_own_adapters():
    model, inputs = generator("llama", "lora")
    one, other = ({key: value[row : row + 1] for key, value in inputs.items()} for row in (0, 1))
    seen = []

    def inside(ids, scores):
        with pytest.raises(RoutingError):
            model.generate(**other, max_new_tokens=1)
        seen.append(model.generate(**other, max_new_tokens=1, task_ids=["two"]))
        return scores

    model.generate(**one, max_new_tokens=2, task_ids=["one"], logits_processor=[inside])
    assert seen and torch.equal(seen[0], model.generate(**other, max_new_tokens=1, task_ids=["two"]))
