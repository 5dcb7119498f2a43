"""Prefix tuning: per-row prefixes, masks, forms, flattening, compositions, what is refused."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.errors import AttachError, ConfigError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import skip_without_attention_functions

FORMS = ("concat", "gate_add", "no_gating", "relu")


def adapted(model_type="bert", config=None, names=("one", "two"), implementation=None, scale=5.0):
    skip_without_attention_functions(model_type)
    model = tiny_model(model_type, attn_implementation=implementation).double()
    hfadapt.attach(model, config or hfadapt.PrefixConfig(3, "flat"), names=names, seed=0)
    randomize(model)
    with torch.no_grad():
        for name in names:
            for parameter in hfadapt.parameters_of(model, name).values():
                parameter.mul_(scale)
    return model, tiny_inputs(model_type, padding="right")


def output(model, inputs, **more):
    return model(**inputs, **more)[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "gemma2", "t5", "bart", "vit", "albert"])
@torch.no_grad()
def test_every_form_on_eager_equals_sdpa(model_type, form):
    found = []
    for implementation in ("eager", "sdpa"):
        if model_type == "gemma2" and implementation == "sdpa":
            continue  # its soft cap exists under eager only
        model, inputs = adapted(model_type, hfadapt.PrefixConfig(3, "flat", form=form), implementation=implementation)
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        found.append(output(model, inputs, task_ids=["two", "one", "two"]))
        with hfadapt.active(model, None):
            assert not torch.allclose(found[-1], output(model, inputs), atol=1e-4)
    mask = inputs.get("attention_mask") if model_type in ("bert", "gpt2", "llama", "albert") else None
    real = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(found[0][real], found[-1][real], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gate_add_equals_concat():
    config = hfadapt.PrefixConfig(3, "flat")
    first, inputs = adapted(config=config)
    second, _ = adapted(config=hfadapt.PrefixConfig(3, "flat", form="gate_add"))
    got, want = (output(m, inputs, task_ids="one") for m in (first, second))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5"])
@torch.no_grad()
def test_prefixes_of_different_lengths_share_a_batch(model_type, implementation):
    skip_without_attention_functions(model_type)
    model = tiny_model(model_type, attn_implementation=implementation).double()
    for name, length in (("short", 1), ("long", 5)):
        hfadapt.attach(model, hfadapt.PrefixConfig(length, "flat"), name, seed=length)
    randomize(model)
    inputs = tiny_inputs(model_type, padding="right")
    alone = {name: output(model, inputs, task_ids=name) for name in ("short", "long")}
    mixed = output(model, inputs, task_ids=["long", "short", "long"])
    for row, name in enumerate(("long", "short", "long")):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "bart"])
@torch.no_grad()
def test_attention_weights_on_request_hold_the_prefix_and_sum_to_one(model_type):
    model, inputs = adapted(model_type, names=("one",), implementation="eager")
    want = output(model, inputs)
    out = model(**inputs, output_attentions=True)
    torch.testing.assert_close(out[0], want, rtol=1e-6, atol=1e-6)
    weights = getattr(out, "attentions", None) or out.encoder_attentions
    length = inputs["input_ids"].shape[1]
    assert weights[0].shape[-1] == length + 3
    torch.testing.assert_close(weights[0].sum(-1), torch.ones_like(weights[0].sum(-1)))


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "bart"])
@torch.no_grad()
def test_flattening_keeps_outputs_and_drops_the_networks(model_type, tmp_path):
    model, inputs = adapted(model_type, hfadapt.PrefixConfig(3, "mlp", 8), names=("one", "two"))
    want = {name: output(model, inputs, task_ids=name) for name in ("one", "two")}
    count = hfadapt.flatten_prefix(model, "one")
    assert count == sum(p.numel() for p in hfadapt.parameters_of(model, "one").values())
    for name in ("one", "two"):
        torch.testing.assert_close(output(model, inputs, task_ids=name), want[name], rtol=1e-9, atol=1e-9)
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, tiny_model(model_type).double())
    torch.testing.assert_close(output(again, inputs, task_ids="one"), want["one"], rtol=1e-9, atol=1e-9)
    with pytest.raises(AttachError, match="no reparametrised prefix"):
        hfadapt.flatten_prefix(model, "one")


@torch.no_grad()
def test_a_stack_of_prefixes_is_one_longer_prefix():
    model, inputs = adapted(names=("one", "two"))
    long = tiny_model("bert").double()
    hfadapt.attach(long, hfadapt.PrefixConfig(6, "flat"))
    pairs = [hfadapt.parameters_of(model, n) for n in ("two", "one")]
    for key, parameter in hfadapt.parameters_of(long, "default").items():
        parts = [p[key.replace(".default.", f".{n}.")] for p, n in zip(pairs, ("two", "one"), strict=True)]
        parameter.copy_(torch.cat(parts, 1))
    with hfadapt.active(model, hfadapt.Stack("one", "two")):
        torch.testing.assert_close(output(model, inputs), output(long, inputs), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_average_of_one_prefix_is_that_prefix():
    model, inputs = adapted(names=("one", "two"))
    with hfadapt.active(model, hfadapt.Average("one", weights=[1.0])):
        got = output(model, inputs)
    torch.testing.assert_close(got, output(model, inputs, task_ids="one"), rtol=1e-9, atol=1e-9)
    with hfadapt.active(model, hfadapt.Average("one", "two")):
        assert not torch.allclose(output(model, inputs), got)


@torch.no_grad()
def test_rows_choose_between_a_stack_and_one_prefix():
    model, inputs = adapted(names=("one", "two"))
    hfadapt.compose(model, "both", hfadapt.Stack("one", "two"))
    alone = {n: output(model, inputs, task_ids=n) for n in ("one", "two", "both")}
    order = ["both", "two", "one"]
    mixed = output(model, inputs, task_ids=order)
    for row, name in enumerate(order):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model_type", ["deberta-v2", "mpnet"])
def test_models_that_compute_attention_themselves_are_refused(model_type):
    with pytest.raises(AttachError, match="AttentionInterface"):
        hfadapt.attach(tiny_model(model_type), "prefix")


def test_a_part_that_refuses_our_attention_is_an_error_of_ours_and_leaves_the_model(monkeypatch):
    # As Apertus 1.5's tokenizer of images does, behind configs that were switched already.
    model = tiny_model("bert", "sequence-classification")
    before, inputs = model.config._attn_implementation, tiny_inputs("bert", "sequence-classification")
    expected = model(**inputs).logits

    def refuses(self, name):
        self.config._attn_implementation = name
        raise ValueError("ImageTokenizer does not support this implementation")

    def refuses_alone(self, name, *args, **kwargs):
        raise ValueError("no part supports this implementation")

    monkeypatch.setattr(type(model), "set_attn_implementation", refuses)
    monkeypatch.setattr(type(model), "get_correct_attn_implementation", refuses_alone)
    monkeypatch.setattr(type(model.bert), "get_correct_attn_implementation", refuses_alone)
    with pytest.raises(AttachError, match="ImageTokenizer does not support") as raised:
        hfadapt.attach(model, "prefix")
    assert "a method that does not change attention's core" in str(raised.value)
    assert model.config._attn_implementation == before
    assert not any(name.startswith("hfadapt") for name, _ in model.named_parameters())
    assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_virtual_tokens": 0},
        {"form": "sum"},
        {"attention": ()},
        {"attention": ("self", "self")},
        {"gate": "token"},
        {"query_norm": True},
        {"reparametrization": "lstm"},
    ],
    ids=str,
)
def test_bad_values_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        hfadapt.PrefixConfig(**fields)


def test_only_cross_attention():
    model = tiny_model("bart")
    hfadapt.attach(model, hfadapt.PrefixConfig(2, "flat", attention=("cross",)))
    assert all("encoder_attn" in key for key in hfadapt.parameters_of(model, "default"))
    with pytest.raises(AttachError, match="changes nothing"):
        hfadapt.attach(tiny_model("bert"), hfadapt.PrefixConfig(2, "flat", attention=("cross",)))


def test_gradients_stop_at_the_lowest_prefix():
    model, inputs = adapted(names=("one",))
    hfadapt.set_adapter_drop(model, 1)
    output(model, inputs).square().mean().backward()
    grads = {k: p.grad is not None for k, p in hfadapt.parameters_of(model, "one").items()}
    assert all(found == (".layer.1." in key) for key, found in grads.items())


@torch.no_grad()
def test_a_prefix_takes_no_place_in_positions_or_cache():
    """It may be longer than both: there is no length to refuse."""
    model = tiny_model("gpt2", "causal-lm", n_positions=12).double()
    hfadapt.attach(model, hfadapt.PrefixConfig(40, "flat", init_std=1.0))
    ids = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "pad_token_id": 0}
    want = model.generate(ids, **options, use_cache=False)
    assert want.shape[1] == 12
    assert torch.equal(model.generate(ids, **options), want)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(model.generate(ids, **options, **static), want)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_a_row_without_a_real_key_attends_to_its_prefix_alone(implementation):
    """lambda is 1 there, in every form that has one: softmax(q P_k^T) P_v and no NaN (trap 26)."""
    found = []
    for form in ("concat", "gate_add"):
        config = hfadapt.PrefixConfig(3, "flat", form=form, layers=(0,))
        model, inputs = adapted(config=config, names=("one",), implementation=implementation)
        inputs["attention_mask"] = inputs["attention_mask"].clone()
        inputs["attention_mask"][1] = 0
        heads = []
        dense = model.encoder.layer[0].attention.output.dense
        handle = dense.register_forward_pre_hook(lambda module, args, seen=heads: seen.append(args[0]))
        out = output(model, inputs)
        handle.remove()
        inside = hfadapt.parameters_of(model, "one")
        key, value = (next(p for n, p in inside.items() if n.endswith(k)) for k in ("prefix_key", "prefix_value"))
        attention = model.encoder.layer[0].attention.self
        x = model.embeddings(inputs["input_ids"], inputs.get("token_type_ids"))[1]
        query = attention.query(x).unflatten(-1, (4, 8)).transpose(0, 1)
        want = ((query @ key.transpose(1, 2)) * 8**-0.5).softmax(-1) @ value
        torch.testing.assert_close(heads[0][1], want.transpose(0, 1).flatten(1), rtol=0, atol=1e-9)
        assert out.isfinite().all()
        found.append(out)
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
