"""Checkpoints of the unified view's code are read onto stock models, to its own outputs."""

from __future__ import annotations

import golden_unify
import pytest
import torch
from golden_files import close, starting_with
from golden_unify import outputs_of, read
from golden_unify_base import base_model, base_weights

import hfadapt
from hfadapt.errors import CheckpointError, ConfigError

CASES = [case for case in golden_unify.cases() if not case.endswith("_none")]


def checkpoint_of(golden):
    """What ``save_pretrained`` of the fork's wrapper wrote: the model below one name, the prompts beside it."""
    tensors = {f"pretrained_model.{k}": t for k, t in starting_with(base_weights(golden.arch), "base.").items()}
    for key, tensor in starting_with(golden.tensors, "new.").items():
        tensors[key if key.startswith("prompt_model.") else f"pretrained_model.{key}"] = tensor
    return tensors


def written(folder, golden, change=lambda tensors: None):
    tensors = checkpoint_of(golden)
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


@pytest.mark.parametrize("case", CASES)
def test_every_golden_gives_its_outputs(case, tmp_path):
    golden = read(case)
    model = hfadapt.load_unify(written(tmp_path, golden), golden.options, base_model(golden.arch), name="mam")
    with torch.no_grad():
        for key, value in outputs_of(model, golden):
            close(value, golden.tensors[f"output.{key}"], f"{case} {key}", 1e-5)
    heads = {"roberta": {"classifier"}}.get(golden.arch, set())
    assert heads <= {path.partition(".")[0] for path in hfadapt.own_modules(model, "mam")}


def test_a_head_that_was_trained_is_the_adapters_own_and_is_saved(tmp_path):
    golden = read("roberta_mam")
    head = "pretrained_model.classifier.out_proj.weight"

    def train(tensors):
        tensors[head] = tensors[head] + 1

    model = base_model("roberta")
    before = model.classifier.out_proj.weight.clone()
    hfadapt.load_unify(written(tmp_path, golden, train), golden.options, model)
    assert torch.equal(model.classifier.out_proj.weight, before)
    hfadapt.save(model, tmp_path / "ours")
    again = hfadapt.load(tmp_path / "ours", base_model("roberta"))
    with torch.no_grad():
        assert torch.equal(again(**golden.inputs).logits, model(**golden.inputs).logits)
        assert not torch.allclose(again(**golden.inputs).logits, golden.tensors["output.logits"])


def drop(part):
    return lambda tensors: tensors.pop(next(key for key in tensors if part in key))


def put(part, change):
    def act(tensors):
        key = next(key for key in tensors if part in key)
        tensors[key] = change(tensors[key])

    return act


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("ef_ffn_adapter.up_proj.weight"), "missing .*up_proj.weight"),
        (drop("prompt_model.wte.weight"), "missing prompt_model.wte.weight"),
        (drop("classifier.dense.weight"), "missing classifier.dense.weight"),
        (lambda tensors: tensors.update({"prompt_model.more": torch.zeros(2)}), "unexpected prompt_model.more"),
        (put("word_embeddings", lambda t: t + 1), "word_embeddings.weight: other numbers"),
        (put("word_embeddings", lambda t: t[:-1]), "saved"),
        (put("ef_ffn_adapter.down_proj.weight", lambda t: t[:, :-1]), "saved"),
        (put("ef_ffn_adapter.down_proj.weight", lambda t: t * float("nan")), "NaN"),
        (
            lambda tensors: [tensors.pop(key) for key in [*tensors] if "ef_" not in key and "prompt" not in key],
            "missing",
        ),
    ],
)
def test_other_checkpoints_are_refused_and_the_model_stays(change, message, tmp_path):
    golden, model = read("roberta_mam"), base_model("roberta")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        hfadapt.load_unify(written(tmp_path, golden, change), golden.options, model)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "changed",
    [
        {"attn_mode": "bitfit"},
        {"attn_option": "parallel"},
        {"ffn_option": "none"},
        {"ffn_adapter_layernorm_option": "out"},
        {"ffn_adapter_scalar": "four"},
        {"attn_bn": -1},
        {"mid_dim": 10**30},
        {"attn_mod": "prefix"},
        {"attn_mode": "none", "ffn_mode": "none"},
        {"lora_alpha": float("nan")},
    ],
)
def test_options_that_mean_nothing_are_refused(changed, tmp_path):
    golden = read("roberta_mam")
    with pytest.raises(ConfigError):
        hfadapt.load_unify(written(tmp_path, golden), {**golden.options, **changed}, base_model("roberta"))


def test_other_options_and_other_bases_are_refused(tmp_path):
    golden = read("roberta_mam")
    path = written(tmp_path, golden)
    for changed in ({"ffn_bn": 7}, {"mid_dim": 9}, {"attn_mode": "none"}, {"ffn_option": "sequential"}):
        with pytest.raises(CheckpointError):
            hfadapt.load_unify(path, {**golden.options, **changed}, base_model("roberta"))
    for model in (base_model("bart"), None, torch.nn.Linear(2, 2)):
        with pytest.raises(CheckpointError):
            hfadapt.load_unify(path, golden.options, model)
