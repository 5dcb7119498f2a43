"""Packing the frozen base: same results, same names, and an undo."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt.errors import ConfigError
from hfadapt.runtime import fastest, packing
from hfadapt.runtime.packing import is_packed
from hfadapt.testing.tiny import tiny_inputs, tiny_model

TYPES = ("bert", "gpt2", "llama", "t5", "modernbert")


def frozen(model_type):
    return tiny_model(model_type).requires_grad_(False)


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_packed_model_gives_the_same_outputs_and_unpack_is_bitwise(model_type):
    model, inputs = frozen(model_type), tiny_inputs(model_type)
    want, keys = model(**inputs)[0], list(model.state_dict())
    hfadapt.pack(model)
    torch.testing.assert_close(model(**inputs)[0], want, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == keys
    hfadapt.unpack(model)
    assert torch.equal(model(**inputs)[0], want)
    assert not any("forward" in m.__dict__ for m in model.modules())


@torch.no_grad()
def test_copies_of_a_packed_model_are_packed_and_independent():
    model, inputs = hfadapt.pack(frozen("bert")), tiny_inputs("bert")
    want = model(**inputs)[0]
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        leaf = again.encoder.layer[0].output.dense
        assert leaf.__dict__["forward"].leaf is leaf
        assert torch.equal(again(**inputs)[0], want)


@torch.no_grad()
def test_packed_linear_notices_that_its_weight_changed():
    model, inputs = frozen("bert"), tiny_inputs("bert")
    hfadapt.pack(model)(**inputs)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    packed = model(**inputs)[0]
    torch.testing.assert_close(packed, hfadapt.unpack(model)(**inputs)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int8_dynamic"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_packed_linears_notice_what_changes_no_version(model_type, dtype):
    """Other libraries write through ``.data`` (peft's merge), or put another parameter in the old one's place."""
    changes = {
        "through data": lambda leaf: leaf.weight.data.add_(torch.randn_like(leaf.weight)),
        "in its place": lambda leaf: setattr(leaf, "weight", nn.Parameter(torch.randn_like(leaf.weight), False)),
    }
    for change in changes.values():
        model = frozen(model_type)
        inputs = tiny_inputs(model_type)
        hfadapt.pack(model, dtype)
        with torch.no_grad():
            before = model(**inputs)[0]
            torch.manual_seed(0)
            for module in list(model.modules()):
                if is_packed(module):
                    change(module)
            found = model(**inputs)[0]
            fresh = hfadapt.pack(hfadapt.unpack(copy.deepcopy(model)), dtype)
            assert torch.equal(found, fresh(**inputs)[0])
            assert not torch.allclose(found, before)


def test_a_merge_of_peft_is_seen_by_packed_linears():
    peft = pytest.importorskip("peft", reason="its merge is tried")
    inputs = tiny_inputs("bert")
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(frozen("bert"), config).eval()
    with torch.no_grad():
        want = model(**inputs)[0]
        hfadapt.pack(model.get_base_model())
        for change in (model.merge_adapter, model.unmerge_adapter):
            change()
            torch.testing.assert_close(model(**inputs)[0], want, rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_packed_linears():
    torch.manual_seed(0)
    leaf = nn.Linear(33, 17)
    leaf.weight.requires_grad_(False)
    x = torch.randn(5, 33, requires_grad=True)
    leaf(x).square().sum().backward()
    want, bias = x.grad.clone(), leaf.bias.grad.clone()
    x.grad = leaf.bias.grad = None
    hfadapt.pack(leaf)(x).square().sum().backward()
    torch.testing.assert_close(x.grad, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf.bias.grad, bias, rtol=1e-5, atol=1e-5)


def test_trainable_linears_stay_and_nothing_to_pack_is_an_error():
    with pytest.raises(ConfigError, match=r"no frozen linear.*requires_grad=False.*try: hfadapt\.attach"):
        hfadapt.pack(tiny_model("bert"))


def test_unknown_dtype_names_the_allowed_ones():
    with pytest.raises(ConfigError, match="got: 'int4'; allowed: float32, bfloat16, int8, int8_dynamic, fastest"):
        hfadapt.pack(frozen("bert"), "int4")


def dtypes(model):
    return {m.__dict__["forward"].packed.dtype for m in model.modules() if packing.is_packed(m)}


@torch.no_grad()
def test_a_packed_model_is_packed_again_with_another_dtype():
    model, inputs = frozen("bert"), tiny_inputs("bert")
    want = model(**inputs)[0]
    hfadapt.pack(hfadapt.pack(model), "int8")
    assert dtypes(model) == {"int8"} and packing.packed_as(model) == "int8"
    assert not torch.equal(model(**inputs)[0], want)
    assert torch.equal(hfadapt.unpack(model)(**inputs)[0], want) and packing.packed_as(model) is None


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_int8_rows_give_nearly_the_same_outputs_whose_bits_hang_on_no_other_row(model_type):
    model, inputs = frozen(model_type), tiny_inputs(model_type)
    want = model(**inputs)[0]
    hfadapt.pack(model, "int8_dynamic")
    found = model(**inputs)[0]
    assert 0 < (found - want).norm() < 0.1 * want.norm()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(**inputs)[0], found) and dtypes(again) == {"int8_dynamic"}
    hfadapt.unpack(model)
    assert torch.equal(model(**inputs)[0], want)


def test_adapters_train_over_int8_rows_and_their_saves_hold_no_trace_of_them(tmp_path):
    inputs = tiny_inputs("bert")
    model = tiny_model("bert")
    hfadapt.attach(model, "lora", "task")
    hfadapt.pack(model, "int8_dynamic")
    losses = []
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(6):
        loss = model(**inputs)[0].square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    hfadapt.save(model, tmp_path, "task")
    fresh = hfadapt.load(tmp_path, tiny_model("bert"))
    with torch.no_grad():
        want = hfadapt.pack(fresh, "int8_dynamic").eval()(**inputs)[0]
        assert torch.equal(want, model.eval()(**inputs)[0])


def test_a_model_is_packed_again_where_outliers_are_asked_for_otherwise():
    leaf = nn.Linear(64, 48).requires_grad_(False)
    leaf.weight[:, 7] *= 50
    x = torch.randn(3, 64)
    kept = hfadapt.pack(leaf, "int8_dynamic")(x)
    first = leaf.__dict__["forward"]
    assert hfadapt.pack(leaf, "int8_dynamic").__dict__["forward"] is first
    rounded = hfadapt.pack(leaf, "int8_dynamic", keep_outliers=False)(x)
    exact = hfadapt.unpack(copy.deepcopy(leaf))(x)
    assert (kept - exact).norm() < 0.1 * (rounded - exact).norm()
    with pytest.raises(ConfigError, match="int8 keeps no outliers.*keep_outliers=False.*int8_dynamic"):
        hfadapt.pack(leaf, "int8", keep_outliers=False)


def test_a_linear_with_more_inputs_than_int32_sums_is_named_and_the_fastest_leaves_it_out(monkeypatch):
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)).requires_grad_(False)
    monkeypatch.setattr(packing, "MOST_INPUTS", 7)
    with pytest.raises(ConfigError, match="too many inputs.*0 with 8 inputs.*at most 7.*dtype='int8'"):
        hfadapt.pack(model, "int8_dynamic")
    assert not dtypes(model)
    seen = []
    monkeypatch.setattr(fastest, "MOST_INPUTS", 7)
    monkeypatch.setattr(fastest, "_time", lambda weight, dtype: seen.append(dtype) or 1.0)
    hfadapt.pack(model, "fastest")
    assert set(seen) == {"float32", "bfloat16", "int8"}


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({"float32": 1.0, "bfloat16": 0.2, "int8": 0.4, "int8_dynamic": 0.3}, "bfloat16"),
        ({"float32": 1.0, "bfloat16": 3.0, "int8": 0.4, "int8_dynamic": 0.5}, "int8"),
        ({"float32": 1.0, "bfloat16": 3.0, "int8": 0.4, "int8_dynamic": 0.3}, "int8_dynamic"),
        ({"float32": 1.0, "bfloat16": 3.0, "int8": 0.95, "int8_dynamic": 0.95}, "float32"),  # not worth the bits
        (
            {"float32": 1.0, "bfloat16": 3.0, "int8": 3.0, "int8_dynamic": 1.2},
            "float32",
        ),  # slower, whatever it is called
    ],
)
def test_the_fastest_product_is_measured_and_said(times, chosen, monkeypatch, caplog):
    seen = []
    monkeypatch.setattr(fastest, "_time", lambda weight, dtype: seen.append(tuple(weight.shape)) or times[dtype])
    model = frozen("bert")
    with caplog.at_level(logging.WARNING, "hfadapt"):
        hfadapt.pack(model, "fastest")
    assert dtypes(model) == {chosen}
    assert f"{chosen} is the choice" in caplog.text and all(f"{dtype} " in caplog.text for dtype in times)
    assert len(seen) == 4 * len(set(seen)), "a shape was measured twice"


def test_the_fastest_product_is_one_of_the_known_on_this_machine():
    leaf = nn.Linear(64, 48).requires_grad_(False)
    hfadapt.pack(leaf, "fastest")
    assert dtypes(leaf) <= {"float32", "bfloat16", "int8", "int8_dynamic"} and dtypes(leaf)


@pytest.mark.parametrize("low", ["pack", "model"])
@pytest.mark.parametrize(("isa", "warned"), [("avx2", True), ("avx512", True), ("amx", False), ("avx512bf16", False)])
def test_a_bfloat16_product_without_instructions_for_it_is_named_with_its_cost(isa, warned, low, monkeypatch, caplog):
    monkeypatch.setattr(fastest, "isa", lambda: isa)
    monkeypatch.setattr(fastest, "_time", lambda weight, dtype: 3.5 if weight.dtype == torch.bfloat16 else 1.0)
    model = frozen("bert") if low == "pack" else frozen("bert").bfloat16()
    with caplog.at_level(logging.WARNING, "hfadapt"):
        hfadapt.pack(model, "bfloat16" if low == "pack" else "float32")
    assert ("3.5 times those of float32" in caplog.text) is warned
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hfadapt"):
        hfadapt.pack(model, "bfloat16" if low == "pack" else "float32")  # nothing is packed anew
    assert not caplog.text
