"""PALs, low-rank layers, LHUC and task functions on top: what they read, change, share and refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertForSequenceClassification, DynamicCache

import hfadapt
from hfadapt.errors import AttachError, ConfigError, RoutingError
from hfadapt.runtime.attachment import deltas_of
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import CACHE

TASKS = ["a", "b"]
WITHIN = {
    "low_rank": hfadapt.LowRank(4, init="normal"),
    "pal": hfadapt.PAL(8, num_heads=2, init="normal", dropout=0.0),
    "pal_ffn": hfadapt.PAL(8, g="ffn", init="normal"),
}


def adapted(method, model_type: str = "bert", **options):
    model = tiny_model(model_type, **options).double().eval()
    hfadapt.attach(model, method, names=TASKS, seed=0)
    return model


def inputs_of(model_type: str = "bert", padding: str | None = "right"):
    return tiny_inputs(model_type, batch=2, padding=padding)


@pytest.mark.parametrize("method", WITHIN)
@torch.no_grad()
def test_the_task_function_reads_the_layers_input(method: str) -> None:
    """Changing the base's own attention output leaves what TS adds in that layer as it was (trap 1)."""
    model, inputs = adapted(WITHIN[method]), inputs_of()
    _, delta = next(iter(deltas_of(model, "a")))
    read = []
    delta.register_forward_pre_hook(lambda module, args: read.append(args[1].clone()))
    model(**inputs, task_ids="a")
    model.encoder.layer[0].attention.output.dense.weight.mul_(3)
    model(**inputs, task_ids="a")
    assert torch.equal(read[0], read[1])


@pytest.mark.parametrize("method", WITHIN)
@torch.no_grad()
def test_a_zero_decoder_gives_the_base(method: str) -> None:
    """TS is added behind the FFN, which does not see it (trap 2)."""
    model, inputs = adapted(WITHIN[method]), inputs_of()
    with hfadapt.active(model, None):
        base = model(**inputs)[0]
    for path, parameter in hfadapt.parameters_of(model, "a").items():
        if path.rpartition(".")[2] in ("decoder", "decoder_bias", "up", "up_bias"):
            parameter.zero_()
    torch.testing.assert_close(model(**inputs, task_ids="a")[0], base, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [hfadapt.PAL(8, num_heads=2), hfadapt.LowRank(4), hfadapt.LHUC()], ids=str)
@torch.no_grad()
def test_a_fresh_adapter_is_the_base_unless_the_codes_initial_values_are_asked_for(config) -> None:
    model, inputs = adapted(config), inputs_of()
    with hfadapt.active(model, None):
        base = model(**inputs)[0]
    torch.testing.assert_close(model(**inputs, task_ids="a")[0], base, rtol=0, atol=1e-12)


def test_encoder_and_decoder_are_shared_by_layers_and_not_by_tasks(tmp_path) -> None:
    """Trap 4: one tensor for all layers, saved once, tied after loading; its gradient is the sum over layers."""
    config = hfadapt.PAL(8, num_heads=2, init="normal", dropout=0.0)
    model, inputs = adapted(config), inputs_of()
    pointers = {
        task: {delta.ends("encoder", [task])[0].data_ptr() for _, delta in deltas_of(model, task)} for task in TASKS
    }
    assert all(len(p) == 1 for p in pointers.values()) and pointers["a"] != pointers["b"]
    names = [n for n, _ in model.named_parameters() if "encoder_bias" in n or n.endswith(".decoder")]
    assert len(names) == 2 * len(TASKS)

    hfadapt.save(model, tmp_path)
    fresh = tiny_model("bert").double().eval()
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if "hfadapt" not in k})
    fresh = hfadapt.load(tmp_path, fresh)
    assert len({delta.ends("encoder", ["a"])[0].data_ptr() for _, delta in deltas_of(fresh, "a")}) == 1
    with torch.no_grad():
        assert torch.equal(fresh(**inputs, task_ids="a")[0], model(**inputs, task_ids="a")[0])

    model(**inputs, task_ids="a")[0].sum().backward()
    shared = next(p for n, p in hfadapt.parameters_of(model, "a").items() if n.endswith("stacks.encoder_layer.encoder"))
    apart = adapted(hfadapt.PAL(8, num_heads=2, share=False, dropout=0.0))
    apart.load_state_dict({k: v for k, v in model.state_dict().items() if "hfadapt" not in k}, strict=False)
    ours = hfadapt.parameters_of(model, "a")
    for path, parameter in hfadapt.parameters_of(apart, "a").items():
        leaf = path.rpartition(".")[2]
        key = path if path in ours else f"hfadapt_shared.a.pal.stacks.encoder_layer.{leaf}"
        parameter.data.copy_(ours[key])
    apart(**inputs, task_ids="a")[0].sum().backward()
    each = [p.grad for n, p in hfadapt.parameters_of(apart, "a").items() if n.endswith(".encoder")]
    assert len(each) == 2
    torch.testing.assert_close(shared.grad, sum(each), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "method", [hfadapt.TopAttention(8, 2, num_heads=2), hfadapt.TopLayer(), hfadapt.LowRank(4, position="serial")]
)
def test_new_norms_start_at_one_and_zero(method) -> None:
    """The published code draws both from N(0, 0.02), which starts its new layers near zero (trap 5)."""
    model = adapted(method)
    norms = {n: p for n, p in hfadapt.parameters_of(model, "a").items() if "norm" in n.rpartition(".a.")[2]}
    assert norms
    for name, parameter in norms.items():
        assert torch.equal(parameter, torch.ones_like(parameter) if "weight" in name else torch.zeros_like(parameter))


@pytest.mark.parametrize(
    "method", [WITHIN["pal"], hfadapt.TopAttention(8, 2, num_heads=2), hfadapt.TopLayer()], ids=lambda m: m.method
)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_ignores_padding(method, implementation: str) -> None:
    """Trap 6: masks reach the delta under every implementation; pad tokens do not matter."""
    model, inputs = adapted(method, attn_implementation=implementation), inputs_of()
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    first = model(**inputs, task_ids="a")[0]
    other = {**inputs, "input_ids": torch.where(mask, inputs["input_ids"], 7)}
    torch.testing.assert_close(model(**other, task_ids="a")[0][mask], first[mask], rtol=0, atol=1e-12)
    short = int(mask[-1].sum())
    row = {k: v[-1:, :short] for k, v in inputs.items()}
    torch.testing.assert_close(model(**row, task_ids="a")[0][0], first[-1, :short], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("size", "heads"), [(204, 5), (84, 8), (10, 12)])
def test_heads_that_do_not_divide_the_size_are_refused(size: int, heads: int) -> None:
    """The published code truncates without a word (trap 7)."""
    with pytest.raises(ConfigError, match=rf"divisor of size={size}"):
        hfadapt.PAL(size, num_heads=heads)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: hfadapt.PAL(0),
        lambda: hfadapt.PAL(8, num_heads=2, g="atention"),
        lambda: hfadapt.PAL(8, num_heads=2, activation="gelo"),
        lambda: hfadapt.LowRank(4, position="beside"),
        lambda: hfadapt.TopAttention(10, num_heads=4),
        lambda: hfadapt.TopFFN(8, hidden_layers=3),
        lambda: hfadapt.TopLinear(layers=(0,)),
        lambda: hfadapt.Bottleneck(on=("ffn", "head")),
        lambda: hfadapt.Bottleneck(scaling="large"),
        lambda: hfadapt.Bottleneck(norms={"ln_befor": True}),
        lambda: hfadapt.Bottleneck(norms={"original_ln_after": False}),
        lambda: hfadapt.Invertible(block="rnvp"),
    ],
)
def test_values_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        wrong()


@torch.no_grad()
def test_top_replaces_the_last_hidden_state_before_the_pooler() -> None:
    """Trap 8: also in the tuple of hidden states, whose earlier entries stay those of the base."""
    model, inputs = adapted(hfadapt.TopAttention(8, 2, num_heads=2)), inputs_of()
    with hfadapt.active(model, None):
        base = model(**inputs, output_hidden_states=True)
    out = model(**inputs, output_hidden_states=True, task_ids="a")
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert not torch.allclose(out.last_hidden_state, base.last_hidden_state)
    assert all(torch.equal(x, y) for x, y in zip(out.hidden_states[:-1], base.hidden_states[:-1], strict=True))
    torch.testing.assert_close(out.pooler_output, model.pooler(out.last_hidden_state), rtol=0, atol=0)


@torch.no_grad()
def test_lhuc_multiplies_what_leaves_the_layer() -> None:
    """Trap 39: behind the last norm, and visible in the hidden states."""
    model, inputs = adapted(hfadapt.LHUC(layers=(1,))), inputs_of()
    with hfadapt.active(model, None):
        base = model(**inputs, output_hidden_states=True).hidden_states
    (parameter,) = hfadapt.parameters_of(model, "a").values()
    parameter.normal_()
    changed = model(**inputs, output_hidden_states=True, task_ids="a").hidden_states
    torch.testing.assert_close(changed[2], base[2] * 2 * torch.sigmoid(parameter), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [*WITHIN.values(), hfadapt.LHUC(), "houlsby", "top_layer"], ids=str)
def test_exactly_the_adapters_and_their_heads_train(method) -> None:
    """Trap 40: chosen by identity; a base module whose name holds 'mult' or 'aug' stays frozen."""
    config = tiny_model("bert").config
    model = BertForSequenceClassification(config)
    model.bert.encoder.register_parameter("mult_aug_gamma", torch.nn.Parameter(torch.zeros(1)))
    hfadapt.attach(model, method, names=TASKS)
    wanted = {n for task in TASKS for n in hfadapt.parameters_of(model, task)}
    assert any(n.startswith("classifier.") for n in wanted)
    assert set(hfadapt.trainable_parameters(model)) == wanted


@pytest.mark.parametrize("method", [*WITHIN.values(), "houlsby", "pfeiffer", "par_bn"], ids=str)
@torch.no_grad()
def test_chunked_feed_forward_gives_the_same(method) -> None:
    """Trap 41: chunking is off while a delta needs all tokens, and back on after detach."""
    inputs = inputs_of()
    outputs = []
    for chunk in (0, 1):
        model = adapted(method, chunk_size_feed_forward=chunk)
        outputs.append(model(**inputs, task_ids="a")[0])
        hfadapt.detach(model)
        assert [layer.chunk_size_feed_forward for layer in model.encoder.layer] == [chunk, chunk]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-9)


def test_chunking_switched_on_later_is_refused() -> None:
    model = adapted(WITHIN["pal"])
    model.encoder.layer[0].chunk_size_feed_forward = 1
    with pytest.raises(AttachError, match="chunk_size_feed_forward=0"):
        model(**inputs_of(), task_ids="a")


@pytest.mark.parametrize("method", [WITHIN["pal"], hfadapt.TopLayer()], ids=lambda m: m.method)
@torch.no_grad()
def test_attention_over_a_cache_that_others_filled_is_refused(method) -> None:
    """Earlier tokens were not read by the delta: silence would be a wrong answer."""
    model = tiny_model("gpt2", "causal-lm")
    hfadapt.attach(model, method, seed=0)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    cache = DynamicCache()
    with hfadapt.active(model, None):
        model(ids, **{CACHE: cache})
    with pytest.raises(RoutingError, match="3 cached tokens of 2 rows, none seen here"):
        model(ids[:, :1], **{CACHE: cache})
    cache = DynamicCache()
    want = model(torch.cat([ids, ids], 1)).logits[:, 3:]
    model(ids, **{CACHE: cache})
    torch.testing.assert_close(model(ids, **{CACHE: cache}).logits, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_history_of_a_cache_is_cut_copied_and_rearranged_with_it() -> None:
    model = tiny_model("gpt2", "causal-lm").double()
    hfadapt.attach(model, hfadapt.PAL(8, num_heads=2, init="normal"), seed=0)
    ids = torch.randint(4, 90, (3, 6), generator=torch.Generator().manual_seed(0))
    want = model(ids).logits
    cache = DynamicCache()
    model(ids[:, :5], **{CACHE: cache})
    cache.crop(-2)
    torch.testing.assert_close(model(ids[:, 3:5], **{CACHE: cache}).logits, want[:, 3:5], rtol=0, atol=1e-9)
    order = torch.tensor([2, 0, 1])
    again = copy.deepcopy(cache)
    again.reorder_cache(order)
    torch.testing.assert_close(model(ids[order, 5:], **{CACHE: again}).logits, want[order, 5:], rtol=0, atol=1e-9)
    torch.testing.assert_close(model(ids[:, 5:], **{CACHE: cache}).logits, want[:, 5:], rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_mask_that_says_more_than_padding_is_refused() -> None:
    model = adapted(WITHIN["pal"])
    ids = inputs_of()["input_ids"]
    mask = torch.ones(2, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    mask[:, :, 0, 3:] = False  # the first token sees only those near it
    with pytest.raises(RoutingError, match=r"attention_mask \[B, T\]"):
        model(input_ids=ids, attention_mask=mask, task_ids="a")


@torch.no_grad()
def test_a_pooler_per_task_beside_pals() -> None:
    model, inputs = adapted((hfadapt.PAL(8, num_heads=2), hfadapt.Pooler())), inputs_of()
    with hfadapt.active(model, None):
        base = model(**inputs).pooler_output
    assert torch.equal(model(**inputs, task_ids="a").pooler_output, base)
    for name, parameter in hfadapt.parameters_of(model, "b").items():
        if ".pooler." in name:
            parameter.add_(0.5)
    assert torch.equal(model(**inputs, task_ids="a").pooler_output, base)
    mixed = model(**inputs, task_ids=["b", "a"]).pooler_output
    assert torch.allclose(mixed[1], base[1], atol=1e-12) and not torch.allclose(mixed[0], base[0])
