"""Adapters made one: exact where the method is, as peft where that is right, refused where nothing is defined."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

import hfadapt
from hfadapt.errors import AttachError, CheckpointError, CompositionError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import older

A = hfadapt.LoRA(4, 6.0, ("query", "value"))
B = hfadapt.LoRA(2, 5.0, ("query", "key", "ffn_out"), use_rslora=True)
C = hfadapt.LoRA(3, 3.0, ("output",), layers=(1,))
WEIGHTS = {"a": 0.7, "b": -0.3, "c": 1.5}


def model_with(*configs, kind="bert", names="abc", head="sequence-classification"):
    torch.manual_seed(0)
    model = tiny_model(kind, head).eval()
    for name, config in zip(names, configs, strict=False):
        hfadapt.attach(model, config, name)
    randomize(model)
    return model


def deltas(model, name):
    """What a LoRA adds to the weight of each linear, by merging it into a copy of the base."""
    import copy

    from hfadapt.runtime import deltas_of

    found = {}
    for path, delta in deltas_of(copy.deepcopy(model), name):
        leaf = torch.nn.Linear(delta.site.read_width, delta.site.width).double()
        torch.nn.init.zeros_(leaf.weight)
        delta.merge(name, leaf)
        key = path.partition(".hfadapt.")[0]
        found[key] = found.get(key, 0) + leaf.weight.detach()
    return found


def weighted_sum(model, weights):
    found = {}
    for name, weight in weights.items():
        for key, delta in deltas(model, name).items():
            found[key] = found.get(key, 0) + weight * delta
    return found


def close(got, want, tolerance):
    assert got.keys() == want.keys()
    for key, one in want.items():
        assert (got[key] - one).norm() <= tolerance * one.norm(), key


@pytest.mark.parametrize(
    ("kind", "head", "configs"),
    [
        ("bert", "sequence-classification", (A, B, C)),
        ("gpt2", "causal-lm", (A, hfadapt.LoRA(2, 5.0, ("c_attn",)), hfadapt.LoRA(3, 1.0, ("key", "ffn_in")))),
        ("t5", "seq2seq-lm", (A, hfadapt.LoRA(2, 5.0, ("cross_query",), stack="decoder"), B)),
    ],
    ids=["bert", "gpt2", "t5"],
)
def test_cat_is_the_weighted_sum_of_the_updates(kind, head, configs):
    model = model_with(*configs, kind=kind, head=head)
    made = hfadapt.combine(model, WEIGHTS, method="cat", name="ab", heads=False)
    close(deltas(model, "ab"), weighted_sum(model, WEIGHTS), 1e-6)
    assert made.name == "ab" and made.error < 1e-6
    assert hfadapt.attachment(model).names == ("a", "b", "c", "ab")


def test_the_outputs_of_cat_are_those_of_a_base_with_the_updates_merged():
    model = model_with(A, B)
    hfadapt.combine(model, {"a": 0.7, "b": 0.3}, method="cat", name="ab")
    inputs = tiny_inputs("bert", "sequence-classification")
    hfadapt.activate(model, "ab")
    with torch.no_grad():
        got = model(**inputs).logits
    torch.manual_seed(0)
    plain = tiny_model("bert", "sequence-classification").eval()
    for key, delta in weighted_sum(model, {"a": 0.7, "b": 0.3}).items():
        plain.get_submodule(key).weight.data += delta.float()
    heads = [dict(hfadapt.own_modules(model, one))["classifier"] for one in ("a", "b")]
    plain.classifier.weight.data = 0.7 * heads[0].weight.data + 0.3 * heads[1].weight.data
    plain.classifier.bias.data = 0.7 * heads[0].bias.data + 0.3 * heads[1].bias.data
    with torch.no_grad():
        torch.testing.assert_close(got, plain(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_svd_is_the_closest_update_of_its_rank_and_says_what_it_lost():
    model = model_with(A, B, C)
    whole = hfadapt.combine(model, WEIGHTS, method="svd", name="whole", r=9, heads=False)
    assert whole.error < 1e-6
    cut = hfadapt.combine(model, WEIGHTS, method="svd", name="cut", r=2, heads=False)
    want = weighted_sum(model, WEIGHTS)
    for key, got in deltas(model, "cut").items():
        values = torch.linalg.svdvals(want[key])
        least = float(values[2:].norm() / values.norm())
        assert float((got - want[key]).norm() / want[key].norm()) == pytest.approx(least, rel=1e-4, abs=1e-6)
        assert cut.errors[key] == pytest.approx(least, rel=1e-4, abs=1e-6)
    assert cut.error > 0.05
    assert hfadapt.combine(model, {"a": 1, "b": 1}, method="svd", name="d").name == "d"
    assert {c.r for c in hfadapt.attachment(model).adapters["d"].configs} == {4}


def test_what_was_combined_is_combined_and_compressed_again():
    model = model_with(A, B)
    hfadapt.combine(model, {"a": 1, "b": 1}, method="cat", name="ab", heads=False)
    assert hfadapt.compress(model, "ab", r=6).error < 1e-6
    hfadapt.combine(model, {"a": 1, "ab": -1}, method="cat", name="rest", heads=False)
    minus_b = {key: -delta for key, delta in deltas(model, "b").items()}
    rest = deltas(model, "rest")
    close({key: rest[key] for key in minus_b}, minus_b, 1e-5)


def test_compress_is_the_svd_of_one_adapter():
    model = model_with(A)
    made = hfadapt.compress(model, "a", r=2)
    assert made.name == "a_r2" and 0 < made.error < 1
    assert hfadapt.compress(model, "a", r=4).error < 1e-6
    values = torch.linalg.svdvals(next(iter(deltas(model, "a").values())))
    assert next(iter(made.errors.values())) == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "density"),
    [("linear", None), ("ties", 0.5), ("magnitude_prune", 0.5), ("ties", 1.0), ("dare_linear", 1.0)],
)
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.5, -0.5)], ids=str)
@pytest.mark.filterwarnings("ignore:The density")
def test_what_acts_on_the_matrices_is_what_peft_makes_of_them(method, density, weights):
    if min(weights) < 0 and older("peft", "0.19"):
        pytest.skip("peft before 0.19 gives both factors the sign of a weight, and so adds what it should take away")
    base = tiny_model("bert", "sequence-classification").eval()
    theirs = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"]), adapter_name="a")
    theirs.add_adapter("b", LoraConfig(r=4, lora_alpha=2, target_modules=["query", "value"]))
    torch.manual_seed(1)
    for key, parameter in theirs.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter)
    mine = model_with(hfadapt.LoRA(4, 8.0), hfadapt.LoRA(4, 2.0))
    for name in "ab":
        for key, parameter in hfadapt.parameters_of(mine, name, own_modules=False).items():
            leaf, _, kind = key.partition(".hfadapt.")[0], 0, key[-1].upper()
            parameter.data = theirs.get_parameter(f"base_model.model.{leaf}.lora_{kind}.{name}.weight").data.clone()
    theirs.add_weighted_adapter(["a", "b"], list(weights), "ab", combination_type=method, density=density)
    hfadapt.combine(mine, dict(zip("ab", weights, strict=True)), method=method, density=density, name="ab", heads=False)
    for leaf, delta in deltas(mine, "ab").items():
        layer = theirs.get_submodule(f"base_model.model.{leaf}")
        torch.testing.assert_close(delta.float(), layer.get_delta_weight("ab"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_with_a_rank_the_updates_themselves_are_combined(method):
    model = model_with(A, B, C)
    density = None if method == "linear" else 1.0
    made = hfadapt.combine(model, WEIGHTS, method=method, density=density, r=16, name="ab", heads=False)
    want = weighted_sum(model, WEIGHTS)
    exact = not method.endswith("ties")
    assert (made.error < 1e-6) == exact
    if exact:
        close(deltas(model, "ab"), want, 1e-6)


def test_dare_keeps_what_it_expects_and_is_the_same_for_a_seed():
    model = model_with(A, A, A)
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        hfadapt.combine(model, {"a": 1, "b": 1}, method="dare_linear", density=0.5, seed=seed, name=name, heads=False)
    same = [torch.cat([d.flatten() for d in deltas(model, name).values()]) for name in "xyz"]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_matrices_of_different_ranks_are_refused(method):
    model = model_with(A, B)
    density = None if method == "linear" else 0.5
    with pytest.raises(CompositionError, match=r"different ranks is not defined[\s\S]*cat"):
        hfadapt.combine(model, {"a": 0.5, "b": 0.5}, method=method, density=density, name="ab")
    assert hfadapt.attachment(model).names == ("a", "b")


@pytest.mark.parametrize("method", ["pfeiffer", "houlsby", "par_bn", hfadapt.ParallelConfig(r=4)], ids=str)
def test_bottleneck_adapters_are_averaged(method):
    model = model_with(method, method)
    hfadapt.combine(model, {"a": 0.25, "b": 0.75}, name="soup")
    each = [hfadapt.parameters_of(model, name) for name in ("a", "b", "soup")]
    for a, b, soup in zip(*(found.values() for found in each), strict=True):
        torch.testing.assert_close(soup, 0.25 * a + 0.75 * b)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "spam"}, "no such method"),
        ({"method": "ties"}, "bad density"),
        ({"method": "cat", "density": 0.5}, "bad density"),
        ({"method": "ties", "density": 0.0}, "bad density"),
        ({"method": "cat", "r": 3}, "bad rank"),
        ({"method": "svd", "r": 0}, "bad rank"),
        ({"weights": {}}, "weights by adapter"),
        ({"weights": {"a": float("nan")}}, "weight"),
        ({"weights": {"a": "1"}}, "weight"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_are_refused(options, match):
    model = model_with(A, A)
    weights = options.pop("weights", {"a": 0.5, "b": 0.5})
    with pytest.raises(CompositionError, match=match):
        hfadapt.combine(model, weights, name="ab", **options)


@pytest.mark.parametrize(
    ("configs", "options", "match"),
    [
        ((A, "pfeiffer"), {}, "different methods"),
        (("mam", "mam"), {}, "several at once"),
        (("pal", "pal"), {}, "cannot be combined"),
        (("pfeiffer", "houlsby"), {}, "configs are equal"),
        (("pfeiffer", "pfeiffer"), {"method": "cat"}, "only be averaged"),
        (("pfeiffer", "pfeiffer"), {"weights": {"a": 1.0, "b": 1.0}}, "sum to 1"),
        ((hfadapt.LoRA(gate="token"), A), {"method": "cat"}, "gate"),
        ((hfadapt.LoRA(dora=True), A), {"method": "cat"}, "DoRA"),
        ((A, hfadapt.LoRA(bias=True)), {"method": "cat"}, "bias"),
        ((A, A), {"weights": {"a": 1.0, "b": -1.0}}, "heads"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_defined_is_refused(configs, options, match):
    model = model_with(*configs)
    weights = options.pop("weights", {"a": 0.5, "b": 0.5})
    with pytest.raises(CompositionError, match=match):
        hfadapt.combine(model, weights, name="ab", **options)
    assert hfadapt.attachment(model).names == ("a", "b")


def test_heads_of_other_shapes_are_refused_or_left_out(tmp_path):
    model = model_with(A)
    wide = tiny_model("bert", "sequence-classification", num_labels=5)
    hfadapt.attach(wide, A, "b")
    hfadapt.load(hfadapt.save(wide, tmp_path / "b"), model)
    with pytest.raises(CompositionError, match=r"shapes agree[\s\S]*heads=False"):
        hfadapt.combine(model, {"a": 0.5, "b": 0.5}, name="ab")
    hfadapt.combine(model, {"a": 0.5, "b": 0.5}, name="ab", heads=False)
    assert torch.equal(hfadapt.own_modules(model, "ab")["classifier"].weight, model.classifier.weight)


def test_names_that_are_taken_or_not_there_are_refused():
    model = model_with(A, A)
    with pytest.raises(CheckpointError, match="attached already"):
        hfadapt.combine(model, {"a": 1.0}, name="b")
    with pytest.raises(AttachError, match="no adapter 'spam'"):
        hfadapt.combine(model, {"spam": 1.0}, name="ab")


def test_a_combined_adapter_is_saved_and_loaded_as_any_other(tmp_path):
    model = model_with(A, B)
    hfadapt.combine(model, {"a": 0.7, "b": 0.3}, method="cat", name="ab")
    hfadapt.save(model, tmp_path, "ab")
    again = hfadapt.load(tmp_path, tiny_model("bert", "sequence-classification"))
    close(deltas(again, "ab"), deltas(model, "ab"), 1e-9)
